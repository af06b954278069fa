from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run

from roma_ds.errors import UserError
from roma_ds.export.card import model_card
from roma_ds.storage.atomic import write_json
from roma_ds.training.stage import write_router_file


def router(folder: Path) -> Path:
    path = folder / "router.safetensors"
    facts = {"method": "roma", "layers": "2,3", "config_hash": "0123456789abcdef"}
    write_router_file(
        path, {2: torch.zeros(8, 32), 3: torch.ones(8, 32)}, {2: "m.layers.2.g", 3: "m.layers.3.g"}, facts
    )
    return path


def evaluation(folder: Path, name: str, average: float, tasks: dict[str, float]) -> Path:
    results: dict[str, Any] = {task: {"accuracy": value, "stderr": 0.0123} for task, value in tasks.items()}
    write_json(folder / f"{name}.json", {"variant": name, "tasks": results, "average": average})
    return folder / f"{name}.json"


def test_the_card_states_what_is_known(tmp_path: Path) -> None:
    run = tiny_run(Path("/models/base"), tmp_path, "model.revision=abc", "train.seed=5")
    paths = {
        "base": evaluation(tmp_path, "base", 0.5, {"mmlu": 0.4, "boolq": 0.6}),
        "router_tuning": tmp_path / "absent.json",
        "roma": evaluation(tmp_path, "roma", 0.625, {"mmlu": 0.5, "boolq": 0.75}),
    }
    card = model_card(run, router(tmp_path), paths)
    assert card.startswith("# Routers for /models/base\n")
    assert "2 routers (512 weights, float32), layers 2,3, trained by roma" in card
    assert "revision abc" in card
    assert "seed 5" in card
    assert "config hash: 0123456789abcdef" in card
    assert "roma-ds merge /models/base router.safetensors --out merged" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert table == [
        "| variant | average | mmlu | boolq |",
        "|---|---|---|---|",
        "| base | 50.00 | 40.0 ± 1.2 | 60.0 ± 1.2 |",
        "| roma | 62.50 | 50.0 ± 1.2 | 75.0 ± 1.2 |",
    ]


def test_without_evaluations_there_is_no_table(tmp_path: Path) -> None:
    card = model_card(tiny_run(Path("/m"), tmp_path), router(tmp_path), {"base": tmp_path / "absent.json"})
    assert "|" not in card


def test_an_evaluation_of_other_tasks_leaves_cells_empty(tmp_path: Path) -> None:
    """A task added after the base model was measured."""
    paths = {
        "base": evaluation(tmp_path, "base", 0.5, {"mmlu": 0.5}),
        "roma": evaluation(tmp_path, "roma", 0.5, {"mmlu": 0.5, "boolq": 0.5}),
    }
    card = model_card(tiny_run(Path("/m"), tmp_path), router(tmp_path), paths)
    assert "| base | 50.00 | 50.0 ± 1.2 | - |" in card


def test_a_card_needs_routers(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        model_card(tiny_run(Path("/m"), tmp_path), tmp_path / "absent", {})
