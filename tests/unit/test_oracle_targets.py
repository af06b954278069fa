"""The routing weights that Oracle Tuning pulls to, kept between starts of a study."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from roma_ds.errors import UserError
from roma_ds.pipeline.folders import Folders
from roma_ds.study import oracle_targets

PRETRAINED = np.eye(4, dtype=np.float16)[None, :2].repeat(5, axis=0)


class Descents:
    """In place of a network: every descent ends at an even load, and is counted."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.count = 0

    def oracle(self, questions: Any, rows: list[int], descent: Any) -> tuple[Any, list[int]]:
        self.count += 1
        self.asked = list(rows)
        return np.full((len(rows), self.layers, 4), 0.25, np.float32), [7]


class ARank:
    """One rank of two, which meets what the other found."""

    def __init__(self, rank: int, size: int, others: list[Any]) -> None:
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self.others = others

    def from_first(self, item: Any) -> Any:
        return item

    def gather_to_first(self, item: Any) -> list[Any] | None:
        self.others.append(item)
        return list(reversed(self.others)) if self.is_first else None


def made(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    descents: Descents,
    rows: list[int],
    column: int,
    collected: str = "abc",
    world: ARank | None = None,
) -> dict[str, Any]:
    """The facts; the weights are in the folder."""
    alone = SimpleNamespace(
        session=SimpleNamespace(
            folders=Folders(folder), fingerprint=lambda record: collected, release_frozen=lambda: None
        ),
        run_config=SimpleNamespace(eval=SimpleNamespace(batch_size=2)),
        trained_rows=lambda: rows,
        steering=lambda: descents,
        reference_questions=lambda: None,
    )
    monkeypatch.setattr(oracle_targets, "Alone", lambda work: alone)
    monkeypatch.setattr(oracle_targets, "agreement", lambda world: contextlib.nullcontext())
    outer = SimpleNamespace(world=world or ARank(0, 1, []))
    tables = SimpleNamespace(routing=PRETRAINED)
    work: Any = SimpleNamespace(session=outer, columns=[column], tables=tables)
    return oracle_targets.make_oracle_targets(work)


def written(folder: Path) -> np.ndarray:
    found: np.ndarray = np.load(folder / "controls" / "oracle_tuning" / "oracle.routing.npy")
    return found


def test_they_are_made_again_only_where_they_are_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descents = Descents(1)

    def count(rows: list[int], column: int, collected: str = "abc") -> int:
        made(tmp_path, monkeypatch, descents, rows, column, collected)
        return descents.count

    assert count([0, 2], 1) == 1
    facts, found = made(tmp_path, monkeypatch, descents, [0, 2], 1), written(tmp_path)
    assert facts["oracle_steps_taken_mean"] == 7 and facts["oracle"]["steps"] == 25
    assert (found[[0, 2], 1] == 0.25).all() and (found[1] == PRETRAINED[1]).all()
    assert (found[:, 0] == PRETRAINED[:, 0]).all()
    assert count([0, 2], 1) == 1
    assert count([0, 2], 0) == 2
    found = written(tmp_path)
    assert (found[[0, 2], 0] == 0.25).all() and (found[:, 1] == PRETRAINED[:, 1]).all()
    assert count([0, 1], 0) == 3
    assert count([0, 1], 0, "abd") == 4


def test_ranks_take_whole_batches_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others, second, first = [4, 2, 0, 1, 3], [], Descents(1), Descents(1)
    made(tmp_path / "one", monkeypatch, Descents(1), rows, 1)
    with pytest.raises(UserError, match="does not exist"):
        # It has nothing to write, and here nobody before it did.
        made(tmp_path / "two", monkeypatch, second, rows, 1, world=ARank(1, 2, others))
    made(tmp_path / "two", monkeypatch, first, rows, 1, world=ARank(0, 2, others))
    assert first.asked == [4, 2, 3] and second.asked == [0, 1]
    assert (written(tmp_path / "one") == written(tmp_path / "two")).all()
