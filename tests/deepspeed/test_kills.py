"""A few kills of a random rank; `kill_loop.py` does many."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_loop import kill_loop


@pytest.mark.timeout(600)
def test_a_killed_rank_costs_nothing_but_time(tmp_path: Path) -> None:
    kills = list(kill_loop(tmp_path, 1, seed=7, stages=(0,), places=("steps and saves",)))
    assert all(kill.good for kill in kills), kills
    assert all(kill.exit_codes[kill.rank] == -9 for kill in kills), kills
