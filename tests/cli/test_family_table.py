"""The command that tries types, on the one that gets no further than its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roma_ds.testing.family_table import main


def test_a_type_is_tried_as_a_user_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "found.json"
    assert main(["doge", "--json", str(target)]) == 1
    out = capsys.readouterr().out
    assert "doge: 1 of 9 steps" in out and "mixes the tokens of a batch" in out
    written = json.loads(target.read_text())
    steps = written["types"]["doge"]["steps"]
    assert {name: step["ok"] for name, step in steps.items()} == {"detected": False, "eval": True}
    assert steps["eval"]["difference"] <= steps["eval"]["limit"] == 1e-5
    assert written["new_types"] == []
