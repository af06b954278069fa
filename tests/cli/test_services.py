"""What CSV, W&B and Comet are told by whole runs, and what is said where one of them is not there."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli.projects import Project, make_project, roma_ds, roma_ds_here
from cli.test_bad_input import refusal

SECTIONS = {
    "csv_monitor": {"enabled": True},
    "wandb": {"enabled": True, "project": "routers"},
    "comet": {"enabled": True, "project": "routers", "samples_log_interval": 1},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, rows=24, epochs=2)


def enable(project: Project, *sections: str) -> str:
    """Write a DeepSpeed JSON with these sections; the override that names it."""
    path = project.folder / "ds.json"
    chosen = {name: SECTIONS[name] for name in sections}
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}, **chosen}))
    return f"deepspeed={path}"


def here(project: Project, command: str, *more: str) -> Any:
    return roma_ds_here(project.arguments(command, *more, ranks=1))


class Wandb:
    """Keeps one run a process, and drops what comes at a lower step than the last, as W&B does."""

    def __init__(self) -> None:
        self.last, self.dropped = 0, 0
        self.kept: dict[tuple[str, int], float] = {}
        self.settings: dict[str, Any] = {}
        self.module: Any = ModuleType("wandb")
        self.module.__spec__ = SimpleNamespace(name="wandb")
        self.module.init = lambda **given: None
        self.module.log = self.log
        self.module.config = SimpleNamespace(update=lambda values, **given: self.settings.update(values))

    def log(self, data: dict[str, float], step: int, commit: bool | None = None) -> None:
        if step < self.last:
            self.dropped += 1
            return
        self.last = step
        self.kept |= {(name, step): value for name, value in data.items()}


def test_curves_and_accuracies_of_a_run_reach_a_service_that_wants_rising_steps(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", service.module)
    done = here(project, "run", enable(project, "wandb"), "controls=[router_tuning]", "train.log_every=2")
    assert done.code == 0, done
    assert service.dropped == 0
    logged = [line["step"] for line in project.metrics()]
    assert len(logged) >= 3
    for line in project.metrics():
        assert service.kept["train/loss", line["step"]] == pytest.approx(line["loss"])
    for variant in ("base", "roma", "router_tuning"):
        result = json.loads((project.out / "eval" / f"{variant}.json").read_text())
        assert service.kept[f"eval/{variant}/average", logged[-1]] == pytest.approx(result["average"])
    assert service.settings["train.lr"] == 1e-2
    said = len(service.kept)
    again = here(project, "run", enable(project, "wandb"), "controls=[router_tuning]", "train.log_every=2")
    assert again.code == 0 and len(service.kept) == said, "nothing was made, nothing is told"


STAND_IN = """
from pathlib import Path
told = []
__version__ = "3.58"
class Experiment:
    def set_name(self, name): pass
    def log_parameters(self, values): told.append("settings")
    def __internal_api__log_metric__(self, name, value, step): told.append(f"{name} {step}")
def start(**given): return Experiment()
def end(): Path("kept.txt").write_text("\\n".join(told))
"""


def test_csv_and_comet_of_a_run_on_two_ranks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comet keeps everything until its end, and a rank ends without the interpreter's usual farewell."""
    (project.folder / "packages").mkdir()
    (project.folder / "packages" / "comet_ml.py").write_text(STAND_IN)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project.folder / "packages"), before]))
    arguments = project.arguments("run", enable(project, "csv_monitor", "comet"), ranks=2)
    done = roma_ds(*arguments, cwd=project.folder)
    assert done.code == 0, done
    kept = (project.folder / "kept.txt").read_text().splitlines()
    steps = [line["step"] for line in project.metrics()]
    assert kept[0] == "settings" and {f"train/loss {step}" for step in steps} < set(kept)
    assert kept[-1].startswith("eval/") and kept[-1].endswith(f" {steps[-1]}")
    with open(project.out / "train" / "csv" / "eval_roma_average.csv") as file:
        head, row = list(csv.reader(file))
    average = json.loads((project.out / "eval" / "roma.json").read_text())["average"]
    assert head == ["step", "average"] and row == [str(steps[-1]), str(average)]
    with open(project.out / "train" / "csv" / "train_loss.csv") as file:
        rows = list(csv.reader(file))[1:]
    assert [int(step) for step, _ in rows] == steps


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("comet", "comet_ml")])
def test_a_service_whose_package_is_missing_is_named_first(
    project: Project, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roma_ds.monitor.services.PACKAGES", {name: f"no_{package}"})
    says = (f"enables {name}", f"pip install no_{package}")
    refusal(here(project, "train", enable(project, name)), *says, code=3)
    assert not (project.out / "collect").exists(), "it is said before anything long"
    checked = here(project, "check", enable(project, name))
    assert checked.code and all(words in checked.out + checked.err for words in says), checked


def test_a_service_that_does_not_start_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Wandb()

    def no_key(**given: Any) -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    service.module.init = no_key
    monkeypatch.setitem(sys.modules, "wandb", service.module)
    done = here(project, "train", enable(project, "wandb"))
    refusal(done, "wandb of the DeepSpeed config could not be started: No API key", "WANDB_MODE", code=3)
    assert not (project.out / "train" / "router.safetensors").exists()
