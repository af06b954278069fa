"""`roma-ds ls runs`, and `roma-ds report` of several folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from synthetic_run import make_run

from roma_ds.cli.listing import lines
from roma_ds.cli.main import main
from roma_ds.errors import UserError
from roma_ds.monitor.side_by_side import compare_runs
from roma_ds.storage.run_lock import locked


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Runs with another learning rate; the second has no RoMA."""
    first = make_run(tmp_path / "runs" / "a", tasks=2, per_task=20, steps=5)
    second = make_run(tmp_path / "runs" / "b", tasks=2, per_task=20, accuracy={"base": 0.5}, steps=7)
    config = yaml.safe_load((second / "config.resolved.yaml").read_text())
    config.setdefault("train", {})["lr"] = 0.5
    config["output_dir"] = "elsewhere"
    (second / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    return [first, second]


def test_runs_are_listed_with_state_step_and_results(two: list[Path], tmp_path: Path) -> None:
    with locked(two[1]):
        head, _, first, second = lines("runs", tmp_path)
    assert head.split()[:3] == ["run", "state", "step"] and "base" in head and "RoMA" in head
    assert first.startswith(str(two[0])) and " 5 " in first
    assert "running on" in second and " 7 " in second and "–" in second
    average = compare_runs(two)["variants"]["base"][1]["average"]
    assert f" {100 * average:.1f} " in second
    assert "stopped before the end of" in list(lines("runs", tmp_path))[3]


def test_no_runs(tmp_path: Path) -> None:
    assert list(lines("runs", tmp_path)) == [f"no runs under {tmp_path}"]


def test_no_folder_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name, says in (("file", "is a file"), ("none", "does not exist")):
        assert main(["ls", "runs", "--under", str(tmp_path / name)]) == 2
        said = capsys.readouterr()
        assert not said.out and f"{tmp_path / name} {says}\n  fix: " in said.err
    monkeypatch.chdir(tmp_path)
    assert main(["ls", "runs"]) == 0, "nothing was run here yet"
    assert capsys.readouterr().out == "no runs under runs\n"


def test_a_damaged_result_does_not_hide_the_others(two: list[Path], tmp_path: Path) -> None:
    (two[0] / "eval" / "base.json").write_text("{")
    assert len(list(lines("runs", tmp_path))) == 4


def test_settings_that_differ_and_results_side_by_side(two: list[Path]) -> None:
    found = compare_runs(two)
    assert found["settings"]["train.lr"][1] == 0.5
    assert "output_dir" not in found["settings"]
    assert found["variants"]["roma"][1] is None
    assert found["variants"]["base"][1]["average"] == pytest.approx(0.5, abs=0.2)
    assert found["training"]["steps"] == [5, 7]


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_config_is_noted(two: list[Path], content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (two[1] / "config.resolved.yaml").write_text(content)
    assert main(["report", *map(str, two)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert any(str(two[1]) in note and "config.resolved.yaml" in note for note in notes), notes


def test_the_command_prints_the_table(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, two)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["a", "b"]
    assert "train.lr" in said and "RoMA, average" in said and "training, steps" in said


def test_a_folder_without_a_run_is_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder of a run"):
        compare_runs([two[0], tmp_path])
    assert main(["report", str(two[0]), os.path.join(tmp_path, "absent")]) == 2
