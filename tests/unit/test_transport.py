"""What every transport checks and promises, with threads for ranks; mpi4py by stand-ins."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.comm import Transport, World, mpi_transport, open_transport
from roma_ds.comm import transport as transport_module
from roma_ds.comm.agreement import OtherRankFailed
from roma_ds.comm.mpi_transport import MpiWire
from roma_ds.comm.ranks import Ranks
from roma_ds.comm.transport import Exchange, RanksDisagree
from roma_ds.errors import EnvironmentFault, RomaError
from roma_ds.testing.thread_ranks import ThreadWire, on_threads
from roma_ds.testing.transport_programs import run_program, same

# A dtype whose name is longer than what ranks tell each other.
OBJECTS = np.dtype([(f"ä{number}", object) for number in range(300)])
CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)


@pytest.mark.parametrize("name", ["torch", "mpi"])
def test_a_process_on_its_own_exchanges_nothing(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    transport = open_transport(ALONE, name)
    assert (transport.rank, transport.size) == (0, 1)
    rows = np.arange(6.0).reshape(3, 2)
    for found in (transport.gather(rows), transport.exchange([rows])):
        assert len(found) == 1 and same(found[0], rows)
        found[0][:] = -1
    total = transport.reduce(rows, "max")
    assert same(total, rows)
    total[:] = -1
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]], "results are copies"
    assert transport.reduce(7).tolist() == 7
    with pytest.raises(TypeError, match="Python objects"):
        transport.gather(np.array([None]))
    transport.close()
    transport.close()
    with pytest.raises(RuntimeError, match="closed"):
        transport.gather(rows)


@given(st.integers(1, 8), st.integers(0, 2**32))
def test_programs_give_what_plain_lists_say(size: int, seed: int) -> None:
    assert len(set(on_threads(size, run_program, seed))) == 1


class CountingWire(ThreadWire):
    """Counts the exchanges of rank 0."""

    calls: list[str]

    def headers(self, mine: Any) -> Any:
        self.calls.append("headers")
        return super().headers(mine)

    def all_gather(self, *arguments: Any) -> None:
        self.calls.append("gather")
        super().all_gather(*arguments)

    def all_to_all(self, *arguments: Any) -> None:
        self.calls.append("exchange")
        super().all_to_all(*arguments)


def counted(transport: Any) -> list[list[str]]:
    """What each of some calls on two ranks costs."""
    wire = transport._wire
    wire.__class__ = CountingWire
    found = []
    none, some = np.zeros((0, 2)), np.ones((3, 2))
    only_first = some if transport.rank == 0 else none
    to_myself = [some if rank == transport.rank else none for rank in range(transport.size)]
    for call in (
        lambda: transport.gather(none),
        lambda: transport.gather(only_first),
        lambda: transport.gather(np.ones((3, 0))),
        lambda: transport.exchange([none, none]),
        lambda: transport.exchange(to_myself),
        lambda: transport.exchange([none, only_first]),
        lambda: transport.reduce(1.0),
    ):
        wire.calls = []
        call()
        found.append(wire.calls)
    return found


def test_payload_is_skipped_where_nobody_has_any_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "ROOM", 0)
    wanted = [["headers"], ["headers", "gather"], ["headers"], ["headers"], ["headers"]]
    assert on_threads(2, counted) == [[*wanted, ["headers", "exchange"], ["headers", "gather"]]] * 2


def sized(transport: Transport, floats: int) -> list[list[str]]:
    """Calls of the wire for as many numbers from one rank, gathered and dealt out, which must arrive."""
    wire: Any = transport._wire  # type: ignore[attr-defined]
    wire.__class__ = CountingWire
    rows = np.arange(floats if transport.rank == 1 else 1, dtype=np.float64)
    found = []
    for call in ("gather", "exchange"):
        wire.calls = []
        parts = transport.gather(rows) if call == "gather" else transport.exchange([rows, rows[:0]])
        found.append(wire.calls)
        wanted = floats if call == "gather" or transport.rank == 0 else 0
        assert parts[1].tolist() == list(range(wanted))
    return found


def test_small_payloads_travel_with_the_headers() -> None:
    fits = transport_module.room(2) // 8
    assert on_threads(2, sized, fits) == [[["headers"], ["headers"]]] * 2
    assert on_threads(2, sized, fits + 1) == [[["headers", "gather"], ["headers", "exchange"]]] * 2


@given(st.integers(1, 5), st.integers(0, 2**32), st.sampled_from([0, 64, 256]))
def test_programs_with_little_room_beside_the_headers(size: int, seed: int, enclosed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport_module, "ROOM", enclosed)
        assert len(set(on_threads(size, run_program, seed))) == 1


def outcome(transport: Transport, bad_rank: int, call: Callable[[Transport, bool], Any]) -> tuple[Any, str]:
    """How `call` ends here when it is wrong on one rank, and whether the ranks are in step afterwards."""
    try:
        call(transport, transport.rank == bad_rank)
    except (RomaError, TypeError, ValueError) as error:
        assert [int(part[0]) for part in transport.gather([transport.rank])] == list(range(transport.size))
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda t, bad: t.gather(np.zeros((2, 3), "f4" if bad else "f8")), ("float32 [*, 3]", "float64")),
        (lambda t, bad: t.gather(np.zeros((2, 3 + bad))), ("float64 [*, 3]", "float64 [*, 4]")),
        (lambda t, bad: t.gather(np.zeros((0, 3 + bad))), ("float64 [*, 3]", "float64 [*, 4]")),
        (lambda t, bad: t.gather([1]) if bad else t.exchange([[1]] * 3), ("gather of", "exchange of")),
        (lambda t, bad: t.reduce(1, "min" if bad else "sum"), ("reduce by min", "reduce by sum")),
        (lambda t, bad: t.reduce([1] * (1 + bad)), ("[*, 1]", "[*, 2]")),
    ],
)  # fmt: skip
def test_ranks_that_disagree_all_raise_the_same(call: Any, parts: tuple[str, str]) -> None:
    results = on_threads(3, outcome, 1, call)
    assert len(set(results)) == 1
    kind, text = results[0]
    assert kind is RanksDisagree
    assert "ranks 0, 2: " in text and "rank 1: " in text and all(part in text for part in parts)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda t, bad: t.gather([None] if bad else [1]), TypeError, "gather cannot send Python objects"),
        (lambda t, bad: t.gather(1 if bad else [1]), ValueError, "first dimension"),
        (lambda t, bad: t.gather([[1], [1, 2]] if bad else [1]), ValueError, "inhomogeneous"),
        (lambda t, bad: t.exchange([[1]] * (3 - bad)), ValueError, "each of the 3 ranks, not 2"),
        (lambda t, bad: t.exchange([[1], [1], [1.0 if bad else 1]]), ValueError, "part 2 is float64"),
        (lambda t, bad: t.reduce(True if bad else 1), TypeError, "bool values have no sum"),
        (lambda t, bad: t.reduce("x" if bad else 1), TypeError, "have no sum"),
        (lambda t, bad: t.reduce(1, "product" if bad else "sum"), ValueError, "no such operation: product"),
        (lambda t, bad: t.gather(np.zeros(1, OBJECTS if bad else int)), TypeError, "'ä7'"),
    ],
)
def test_what_cannot_be_sent_on_one_rank_is_an_error_on_all(call: Any, kind: Any, text: str) -> None:
    first, second, third = on_threads(3, outcome, 1, call)
    assert second[0] is kind and text in second[1]
    assert first == third
    assert first[0] is OtherRankFailed
    assert first[1].startswith(f"rank 1 failed: {kind.__name__}: ") and text in first[1]


def test_a_row_too_many_for_the_wire_is_refused_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadWire, "most_rows", 4)

    def gathers(transport: Transport) -> tuple[int, str]:
        fits = transport.gather(np.zeros(2 + 0 * transport.rank))
        with pytest.raises(RomaError, match="5 rows in one exchange") as caught:
            transport.gather(np.zeros(2 + transport.rank))
        assert caught.value.agreed
        with pytest.raises(RomaError, match="6 rows in one exchange"):
            transport.exchange([np.zeros(3 * transport.rank)] * 2)
        return len(fits), caught.value.fix or ""

    assert on_threads(2, gathers) == [(2, "set index.transport=torch, or use more ranks")] * 2


def test_sums_are_the_same_bits_on_every_rank() -> None:
    def sums(transport: Transport) -> bytes:
        values = np.random.default_rng(transport.rank).normal(size=100).astype(np.float32)
        return transport.reduce(values).tobytes() + transport.reduce(np.uint64(2**63 + 1)).tobytes()

    found = on_threads(7, sums)
    assert len(set(found)) == 1
    assert int(np.frombuffer(found[0][-8:], np.uint64)[0]) == (7 * (2**63 + 1)) % 2**64


def test_an_error_of_the_wire_says_where_this_rank_was() -> None:
    def left_alone(transport: Transport) -> None:
        if transport.rank == 1:
            raise KeyError("by design")
        try:
            transport.gather(np.zeros((2, 3), np.float32))
        except threading.BrokenBarrierError as error:
            notes.extend(error.__notes__)
            raise

    notes: list[str] = []
    with pytest.raises(KeyError):
        on_threads(2, left_alone)
    assert notes == ["rank 0 waited for the other 1 in: gather of float32 [*, 3]"]


def test_read_only_and_strided_arrays_are_sent_as_they_look() -> None:
    def sends(transport: Transport) -> bool:
        grid = np.arange(24).reshape(4, 6)
        grid.flags.writeable = False
        wanted = grid[::2, ::3]
        parts = [*transport.gather(wanted), *transport.exchange([wanted] * 2)]
        return all(same(part, wanted) and part.flags.writeable and part.flags.aligned for part in parts)

    assert on_threads(2, sends) == [True, True]


def stand_in(rank: int, size: int) -> Any:
    """An mpi4py in whose world this process is `rank` of `size`."""
    world = types.SimpleNamespace(Get_rank=lambda: rank, Get_size=lambda: size)
    return types.SimpleNamespace(COMM_WORLD=world)


def test_without_mpi4py_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(EnvironmentFault, match="mpi4py cannot be imported") as caught:
        mpi_transport._load()
    assert caught.value.exit_code == 3
    assert "pip install 'roma_ds[mpi]'" in str(caught.value.fix)


def test_an_mpi_that_does_not_start_is_told_from_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name != "MPI":
                raise AttributeError(name)
            raise RuntimeError("cannot load MPI library")

    monkeypatch.setitem(sys.modules, "mpi4py", Broken("mpi4py"))
    with pytest.raises(EnvironmentFault, match="MPI does not start: cannot load MPI library") as caught:
        mpi_transport._load()
    assert "MPI library" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ((0, 1), "rank 1 of 3 is rank 0 of 1 in MPI's world: it was not started by MPI"),
        ((2, 3), "rank 1 of 3 is rank 2 of 3 in MPI's world"),
        ((1, 4), "rank 1 of 3 is rank 1 of 4 in MPI's world"),
    ],
)
def test_mpi_ranks_that_are_not_torch_ranks_are_refused(place: tuple[int, int], text: str) -> None:
    world = World(Ranks(1, 3), CPU)
    mpi_transport._check_same_ranks(stand_in(1, 3), world)
    with pytest.raises(EnvironmentFault) as caught:
        mpi_transport._check_same_ranks(stand_in(*place), world)
    assert caught.value.message == text
    assert "let MPI start the ranks" in str(caught.value.fix)


def test_mpi_processes_that_know_nothing_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by mpirun alone, without the variables of torch, each would be a whole run of its own."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.setenv(name, "1")
        open_transport(ALONE, "mpi")
        monkeypatch.setenv(name, "2")
        with pytest.raises(EnvironmentFault, match="MPI started 2 processes") as caught:
            open_transport(ALONE, "mpi")
        assert "let MPI start the ranks" in str(caught.value.fix)
        open_transport(ALONE, "torch")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("limit", [1, 64, 2**30])
def test_rounds_take_every_row_once_and_stay_below_the_limit(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpi_transport, "ROUND_BYTES", limit)
    wire = MpiWire.__new__(MpiWire)
    wire._size = 3
    counts = np.array([[0, 7, 1], [20, 0, 0], [3, 3, 3]])
    taken = np.zeros_like(counts)
    for before, now in wire._rounds(counts, 4):
        assert (before == taken).all()
        assert (now.sum(axis=0) * 4).max() <= max(limit, 3 * 4)
        taken += now
    assert (taken == counts).all()


def test_a_closed_transport_of_several_ranks_refuses_further_calls() -> None:
    transport = Exchange(0, 2, ThreadWire(0, [None] * 2, threading.Barrier(2)))
    transport.close()
    with pytest.raises(RuntimeError, match="closed"):
        transport.reduce(1)
