"""The routing weights that Oracle Tuning pulls to, kept between starts of a study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from roma_ds.pipeline.folders import Folders
from roma_ds.study.alone import Alone


class Descents:
    """In place of a network: every descent ends at an even load, and is counted."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.count = 0

    def oracle(self, questions: Any, rows: list[int], descent: Any) -> tuple[Any, list[int]]:
        self.count += 1
        return np.full((len(rows), self.layers, 4), 0.25, np.float32), [7]


def test_they_are_made_again_only_where_they_are_of_something_else(tmp_path: Path) -> None:
    descents = Descents(1)
    pretrained = np.eye(4, dtype=np.float16)[None, :2].repeat(3, axis=0)

    def made(rows: list[int], column: int, collected: str = "abc") -> tuple[int, np.ndarray, dict[str, Any]]:
        alone: Any = Alone.__new__(Alone)
        given = {"fingerprint": lambda record: collected, "release_frozen": lambda: None}
        alone.session = SimpleNamespace(folders=Folders(tmp_path), **given)
        outer = SimpleNamespace(world=SimpleNamespace(is_first=True))
        tables = SimpleNamespace(routing=pretrained)
        alone.work = SimpleNamespace(session=outer, columns=[column], tables=tables)
        alone._trained_rows = lambda: rows
        alone._steering = lambda: descents
        alone._reference_questions = lambda: None
        facts = alone.make_oracle_targets()
        path = tmp_path / "controls" / "oracle_tuning" / "oracle.routing.npy"
        return descents.count, np.load(path), facts

    count, found, facts = made([0, 2], 1)
    assert count == 1 and facts["oracle_steps_taken_mean"] == 7 and facts["oracle"]["steps"] == 25
    assert (found[[0, 2], 1] == 0.25).all() and (found[1] == pretrained[1]).all()
    assert (found[:, 0] == pretrained[:, 0]).all()
    assert made([0, 2], 1)[0] == 1 and made([0, 2], 1)[2] == facts
    count, found, _ = made([0, 2], 0)
    assert count == 2 and (found[[0, 2], 0] == 0.25).all() and (found[:, 1] == pretrained[:, 1]).all()
    assert made([0, 1], 0)[0] == 3
    assert made([0, 1], 0, "abd")[0] == 4
