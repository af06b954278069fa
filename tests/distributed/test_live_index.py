"""Sharded = replicated = one process that looks at everyone, through any program, on real ranks."""

from __future__ import annotations

import os
import signal
import time
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from index_programs import Problem, problems, run_program

from roma_ds.comm import Transport, World, open_transport
from roma_ds.comm.transport import TransportName
from roma_ds.errors import RomaError
from roma_ds.index.live import LiveIndex, Snapshot
from roma_ds.index.replicas import ReplicasDiffer, check_replicas
from roma_ds.index.updates import ADD, REFRESH, REMOVE, Updates
from roma_ds.testing.local_ranks import RankFailed, on_ranks
from roma_ds.testing.mpi_ranks import on_mpi_ranks, why_no_mpi

EXAMPLES = {1: 150, 2: 120, 3: 60, 4: 50, 8: 20}
BACKENDS = ("faiss", "torch")
SAMPLES, DIM, WIDTH = 30, 6, 4
CORRUPTED = ("vector", "flag", "epoch")


def all_programs(world: World, transport_name: TransportName, backend: str, examples: int) -> int:
    """Run drawn programs in step on all ranks; returns how many.

    Hypothesis draws the same examples everywhere, since it takes them from the function alone, and a rank
    that sees a difference tells the others, so that all fail, and shrink, together.
    """
    transport = open_transport(world, transport_name)
    ran = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(problems)
    def program(problem: Problem) -> None:
        nonlocal ran
        wrong = run_program(world, transport, problem, backend)
        ran += 1
        everyone = [
            f"rank {rank}: {text}" for rank, part in enumerate(world.gather_objects(wrong)) for text in part
        ]
        assert not everyone, everyone[:3]

    program()
    transport.close()
    return ran


def with_each_backend(world: World, examples: int) -> dict[str, int]:
    return {backend: all_programs(world, "torch", backend, examples) for backend in BACKENDS}


@cache
def programs_run(size: int) -> list[dict[str, int]]:
    """By rank and backend how many; one start of the ranks for all backends."""
    return on_ranks(size, with_each_backend, EXAMPLES[size], timeout_s=280)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", list(EXAMPLES))
def test_any_program_gives_what_one_process_gives(size: int, backend: str) -> None:
    ran = [found[backend] for found in programs_run(size)]
    assert len(set(ran)) == 1
    assert ran[0] >= EXAMPLES[size] // 2


@pytest.mark.skipif(why_no_mpi() is not None, reason=str(why_no_mpi()))
@pytest.mark.parametrize("size", [2, 3])
def test_any_program_gives_the_same_over_mpi(size: int) -> None:
    ran = on_mpi_ranks(size, all_programs, "mpi", "faiss", 60, timeout_s=240)
    assert len(set(ran)) == 1
    assert ran[0] >= 30


def filled(world: World, transport: Transport, sharded: bool) -> LiveIndex:
    """An index whose S is every second sample, and two between so that each of 2 ranks keeps some."""
    source = np.random.default_rng(0)
    embeddings = source.standard_normal((SAMPLES, DIM)).astype(np.float32)
    index = LiveIndex(world, transport, embeddings, np.arange(SAMPLES), WIDTH, sharded, refreshed=True)
    ids = np.sort(np.append(np.arange(0, SAMPLES, 2), [9, 11]))
    index.load(Snapshot(0, ids, source.standard_normal((len(ids), WIDTH)).astype(np.float32)))
    return index


def one(identity: int, operation: int) -> Updates:
    vectors = np.ones((int(operation != REMOVE), WIDTH), np.float32)
    return Updates(np.array([identity]), np.array([operation], np.uint8), vectors)


def refusals(world: World) -> list[str]:
    """What wrong updates of the last rank say on this rank; S is as before after each."""
    found = []
    for sharded in (False, True):
        transport = open_transport(world, "torch")
        index = filled(world, transport, sharded)
        unsound = Updates(np.array([1]), np.array([ADD], np.uint8), np.full((1, WIDTH), np.nan, np.float32))
        narrow = Updates(np.array([1]), np.array([ADD], np.uint8), np.ones((1, WIDTH - 1), np.float32))
        twice = Updates(np.array([3, 3]), np.array([ADD, ADD], np.uint8), np.ones((2, WIDTH), np.float32))
        for wrong in (one(-1, ADD), one(SAMPLES, ADD), one(2, ADD), one(3, REMOVE), one(5, REFRESH),
                      unsound, narrow, twice):  # fmt: skip
            before = index.members.copy()
            with pytest.raises(RomaError) as caught:
                index.apply(wrong if world.rank == world.size - 1 else Updates.none(WIDTH))
            assert (index.members == before).all()
            assert index.epoch == 0
            found.append(caught.value.message)
        with pytest.raises(RomaError) as caught:
            index.apply(one(7, ADD))
        found.append(caught.value.message)
        index.apply(Updates.none(WIDTH))
        assert index.epoch == 1
        transport.close()
    return found


def test_wrong_updates_are_refused_on_every_rank_with_the_id() -> None:
    for found in on_ranks(2, refusals, timeout_s=100):
        for start in (0, len(found) // 2):
            words = [
                "id -1",
                "id 30",
                "id 2 ",
                "id 3 ",
                "id 5 ",
                "id 1 has a vector with NaN",
                "shape (1, 3)",
                "id 3 is updated twice",
                "id 7 is updated twice",
            ]
            for text, word in zip(found[start:], words, strict=False):
                assert word in text


def corrupt(world: World, sharded: bool, what: str, repair: bool) -> str:
    """Rank 1 loses its soundness; what the next check says, and whether a repair makes all equal again."""
    transport = open_transport(world, "torch")
    index = filled(world, transport, sharded)
    check_replicas(index)
    if world.rank == 1:
        if what == "vector":
            place = int(index.placement.place(np.flatnonzero(index.members & _mine(index))[:1])[0])
            index.payload.rows.view(np.uint8)[place, 5] ^= 4
        elif what == "flag":
            index.members[1] = True
        else:
            index.epoch += 1
    try:
        mended = check_replicas(index, repair)
    except ReplicasDiffer as error:
        transport.close()
        return error.message
    assert check_replicas(index) == []
    snapshots = world.gather_objects(
        (index.members.tobytes(), index.payload.rows[index.members].tobytes(), index.epoch)
    )
    assert len(set(snapshots)) == 1
    transport.close()
    return f"mended {[damage.rank for damage in mended]}"


def _mine(index: LiveIndex) -> np.ndarray:
    return index.placement.mine(np.arange(len(index.members)))


def corrupt_each(world: World) -> dict[tuple[bool, str], str]:
    return {
        (sharded, what): corrupt(world, sharded, what, repair=False)
        for sharded in (False, True)
        for what in CORRUPTED
    }


@cache
def told_of_corrupt(size: int) -> list[dict[tuple[bool, str], str]]:
    """By rank; one start of the ranks for all that can be corrupt."""
    return on_ranks(size, corrupt_each, timeout_s=200)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("what", CORRUPTED)
def test_a_corrupt_rank_is_named_at_the_next_check(size: int, sharded: bool, what: str) -> None:
    found = [told[sharded, what] for told in told_of_corrupt(size)]
    assert len(set(found)) == 1
    named = "rank 1 " if what != "epoch" or size > 2 else "rank "
    assert named in found[0]
    if named == "rank 1 ":
        assert "rank 0" not in found[0]
        assert "rank 2" not in found[0]


@pytest.mark.parametrize("what", ["vector", "flag"])
def test_a_corrupt_replica_is_repaired_where_asked(what: str) -> None:
    assert on_ranks(3, corrupt, False, what, True, timeout_s=100) == ["mended [1]"] * 3


def raises_or_dies(world: World, sharded: bool, killed: bool) -> None:
    transport = open_transport(world, "torch")
    index = filled(world, transport, sharded)
    for step in range(1000):
        if step == 3 and world.rank == 1:
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("by design")
        index.apply(one(2 + 2 * world.rank, REFRESH))
        index.vectors(np.array([0, 4]))
        time.sleep(0.01)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_a_rank_that_is_gone_ends_the_others_soon(
    sharded: bool, killed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        on_ranks(3, raises_or_dies, sharded, killed, timeout_s=100)
    assert caught.value.codes[1] == (-signal.SIGKILL if killed else 1)
    assert all(caught.value.codes.values())
    assert time.monotonic() - begun < 60
    if not killed:
        assert "ZeroDivisionError: by design" in capfd.readouterr().err


def saved(world: World, sharded: bool) -> object:
    transport = open_transport(world, "torch")
    index = filled(world, transport, sharded)
    index.apply(one(1 + 2 * world.rank, ADD))
    snapshot = index.snapshot()
    transport.close()
    return None if snapshot is None else (snapshot.epoch, snapshot.ids, snapshot.vectors)


def answers(world: World, kept: tuple[int, np.ndarray, np.ndarray], sharded: bool) -> list[object]:
    transport = open_transport(world, "torch")
    index = filled(world, transport, sharded)
    index.load(Snapshot(*kept))
    queries = np.random.default_rng(5).standard_normal((SAMPLES, DIM)).astype(np.float32)
    found = index.nearest(queries, np.full(SAMPLES, -1), 4)
    assert check_replicas(index) == []
    vectors = index.vectors(found.ids)
    transport.close()
    return [found.ids.tolist(), found.inner_products.tolist(), vectors.tolist()]


def test_a_snapshot_serves_any_number_of_ranks_in_any_placement() -> None:
    kept = [on_ranks(2, saved, sharded, timeout_s=60)[0] for sharded in (False, True)]
    for one_, other in zip(*kept, strict=True):
        np.testing.assert_array_equal(one_, other)
    found = [
        answer
        for size, sharded in ((1, False), (2, True), (3, False), (4, True))
        for answer in on_ranks(size, answers, kept[0], sharded, timeout_s=60)
    ]
    assert all(answer == found[0] for answer in found)
