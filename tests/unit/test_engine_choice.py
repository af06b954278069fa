"""Which engine runs the frozen pass, and what an unfinished one says of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from roma_ds.frozen_pass.frozen_pass import begun_engine
from roma_ds.frozen_pass.parts import Parts
from roma_ds.planner.frozen_pass import GIB, Engine, choose_engine


def chosen(available: int, begun: Engine | None = None, ranks: int = 2, batches: int = 100) -> Engine:
    """For a network of 8 GiB in layers of 1 GiB under ZeRO-3, on CPU ranks with `available` GiB each."""
    engine, reason = choose_engine(8 * GIB, GIB, True, ranks, available * GIB, batches, "cpu", begun)
    assert reason
    return engine


def test_memory_comes_first_then_what_has_to_move() -> None:
    assert chosen(7) == "stream", "half of the network and two layers do not fit with something to spare"
    assert chosen(8) == "stream", "50 batches a rank gather the network 50 times, and stream reads it once"
    assert chosen(8, batches=2) == "zero3"
    assert chosen(13, ranks=1) == "zero3", "on one rank nothing is gathered"


@pytest.mark.parametrize("begun", ["zero3", "stream"])
@pytest.mark.parametrize("batches", [2, 100])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_began_goes_on(begun: Engine, batches: int, ranks: int) -> None:
    assert chosen(16, begun, ranks, batches) == begun


def test_what_began_does_not_go_on_where_it_no_longer_fits() -> None:
    assert chosen(7, "zero3") == "stream"


def test_an_unfinished_pass_says_which_engine_began_it(tmp_path: Path) -> None:
    work = tmp_path / "unfinished"
    assert begun_engine(work, "abc", "last1") is None
    Parts(work).prepare("abc-last1-stream", keep=True)
    assert begun_engine(work, "abc", "last1") == "stream"
    assert begun_engine(work, "abc", "last3") is begun_engine(work, "abd", "last1") is None
    Parts(work).prepare("abc-last1-zero3", keep=True)
    assert begun_engine(work, "abc", "last1") == "zero3"
    (work / "pass.json").write_text("{")
    assert begun_engine(work, "abc", "last1") is None
