"""The transports between real processes: gloo, and MPI where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from roma_ds.comm import World, agreement, mpi_transport, open_transport
from roma_ds.comm.agreement import OtherRankFailed
from roma_ds.comm.transport import RanksDisagree, Transport
from roma_ds.errors import EnvironmentFault
from roma_ds.testing.local_ranks import RankFailed, on_ranks
from roma_ds.testing.mpi_ranks import MpiFailed, on_mpi_ranks, start_line, why_no_mpi
from roma_ds.testing.transport_programs import run_program, same

WITHIN_S = 30.0
needs_mpi = pytest.mark.skipif(why_no_mpi() is not None, reason=str(why_no_mpi()))


def every_behaviour(world: World, name: Any, programs: int) -> dict[str, Any]:
    """All that ranks do with a transport when none of them is lost."""
    transport = open_transport(world, name)
    assert (transport.rank, transport.size) == (world.rank, world.size)
    found: dict[str, Any] = {"programs": 0, "errors": errors(transport)}
    for seed in range(programs):
        found["programs"] += run_program(transport, seed)
        if seed % 10 == 0:
            # The engine's collectives go on beside the index's.
            assert world.gather_objects(seed) == [seed] * world.size
    large(transport)
    second = open_transport(world, name)
    found["second"] = [part.tolist() for part in second.gather(np.full(world.rank, world.rank))]
    transport.close()
    assert int(second.reduce(1)) == world.size, "closing one leaves the other"
    second.close()
    third = open_transport(world, name)
    # Below the size of most payloads, so that MPI needs several calls for them; nothing to torch.
    mpi_transport.ROUND_BYTES = 100
    assert all(run_program(third, seed) for seed in range(20))
    third.close()
    return found


def large(transport: Transport) -> None:
    """Megabytes, more than sockets and shared memory hold at once, and all of them from one rank."""
    me, size = transport.rank, transport.size
    rows = np.full((20_000 * me, 33), me, np.float32)
    for rank, part in enumerate(transport.gather(rows)):
        assert same(part, np.full((20_000 * rank, 33), rank, np.float32))
    parts = [np.full(300_000 * to, me * size + to) for to in range(size)]
    for rank, part in enumerate(transport.exchange(parts)):
        assert same(part, np.full(300_000 * me, rank * size + me))
    only = transport.gather(np.arange(1_000_000 if me == size - 1 else 0))
    assert [len(part) for part in only] == [0] * (size - 1) + [1_000_000]
    assert int(only[-1][-1]) == 999_999


def errors(transport: Transport) -> list[tuple[str, str]]:
    """How calls end that are wrong on the last rank; afterwards the ranks are in step."""
    wrong = transport.rank == transport.size - 1
    calls: tuple[Callable[[], Any], ...] = (
        lambda: transport.gather(np.zeros((0, 3), "f8" if wrong else "f4")),
        lambda: transport.exchange([np.zeros((2, 3 + wrong))] * transport.size),
        lambda: transport.gather([1]) if wrong else transport.reduce(1),
        lambda: transport.gather([None] if wrong else [1]),
    )
    found = []
    for call in calls:
        try:
            call()
        except (RanksDisagree, OtherRankFailed, TypeError) as error:
            found.append((type(error).__name__, str(error)))
        assert int(transport.reduce(1)) == transport.size
    return found


def check(results: list[dict[str, Any]]) -> None:
    size = len(results)
    for rank, found in enumerate(results):
        assert found["programs"] == results[0]["programs"] > 40
        assert found["second"] == [[other] * other for other in range(size)]
        kinds, texts = [kind for kind, _ in found["errors"]], [text for _, text in found["errors"]]
        if size == 1:
            assert kinds == ["TypeError"]
            continue
        last = "TypeError" if rank == size - 1 else "OtherRankFailed"
        assert kinds == ["RanksDisagree"] * 3 + [last]
        assert f"rank {size - 1}: gather of float64 [*, 3]" in texts[0] and "float32 [*, 3]" in texts[0]
        assert f"rank {size - 1}: exchange of float64 [*, 4]" in texts[1]
        assert f"rank {size - 1}: gather of int64 [*]" in texts[2] and "reduce by sum of int64" in texts[2]
        assert "gather cannot send Python objects" in texts[3]
        assert texts[:3] == [text for _, text in results[0]["errors"]][:3]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_torch_between_processes(size: int) -> None:
    check(on_ranks(size, every_behaviour, "torch", 50, timeout_s=200))


@needs_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_mpi_between_processes(size: int) -> None:
    check(on_mpi_ranks(size, every_behaviour, "mpi", 50, timeout_s=200))


def lose_one(world: World, name: Any, how: str) -> None:
    """Rank 1 ends while the others wait for its rows."""
    transport = open_transport(world, name)
    transport.gather(np.arange(world.rank))
    if world.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("by design")
    transport.gather(np.arange(3))
    time.sleep(600)


@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_rank_that_is_lost_ends_the_others_under_torch(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        on_ranks(3, lose_one, "torch", how, timeout_s=200)
    assert time.monotonic() - started < WITHIN_S
    assert caught.value.codes == {0: 1, 1: -signal.SIGKILL if how == "killed" else 1, 2: 1}
    text = capfd.readouterr().err
    for rank in (0, 2):
        assert f"rank {rank} waited for the other 2 in: gather of int64 [*]" in text
    assert ("ZeroDivisionError: by design" in text) == (how == "raises")


@needs_mpi
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_rank_that_is_lost_ends_the_others_under_mpi(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(MpiFailed) as caught:
        on_mpi_ranks(2, lose_one, "mpi", how, timeout_s=200)
    assert time.monotonic() - started < WITHIN_S
    assert caught.value.code, "by mpirun itself, not by the time limit"
    text = capfd.readouterr().err
    # Which of the two Open MPI says is a matter of its version; the rank's own words are not.
    assert ("ZeroDivisionError: by design" in text) == (how == "raises")
    assert "rank 1" in text or "1]" in text


# A program that knows nothing of exits of ranks: it ends by an exception and the interpreter's own exit.
UNAWARE = """
from mpi4py import MPI
from roma_ds.comm.mpi_transport import MpiWire
from roma_ds.comm.transport import Exchange
transport = Exchange(MPI.COMM_WORLD.Get_rank(), 2, MpiWire(MPI))
if transport.rank == 1:
    raise ZeroDivisionError("by design")
transport.gather([1])
"""


@needs_mpi
def test_mpi_does_not_wait_at_exit_for_ranks_that_wait_for_this_one() -> None:
    line = [*start_line(), "-n", "2", sys.executable, "-c", UNAWARE]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    answer = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert answer.returncode == 1, answer.stderr
    assert "ZeroDivisionError: by design" in answer.stderr
    assert "rank 1 ends with its MPI transport open" in answer.stderr


def refused(world: World) -> tuple[str, str, int]:
    with pytest.raises(EnvironmentFault) as caught:
        open_transport(world, "mpi")
    with agreement(world):
        pass
    return caught.value.message, str(caught.value.fix), caught.value.exit_code


def test_mpi_is_refused_on_all_ranks_where_mpi_did_not_start_them() -> None:
    first, second = on_ranks(2, refused, timeout_s=200)
    assert first[2] == second[2] == 3
    assert "index.transport=torch" in first[1]
    if why_no_mpi() is None:
        assert first[0] == "rank 0 of 2 is rank 0 of 1 in MPI's world: it was not started by MPI"
