from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import tiny_run

from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.export.card import TAGS, model_card
from roma_ds.export.licence import base_licence
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
    card = model_card(run, router(tmp_path), paths, "mit")
    front, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front) == {"library_name": "roma_ds", "license": "mit", "tags": list(TAGS)}
    assert body.startswith("# Routers for base\n")
    assert "licence of the base model: mit" in card
    assert "/models" not in card, "no path of this machine"
    assert "2 routers (512 weights, float32), layers 2,3, trained by roma" in card
    assert "revision abc" in card
    assert "seed 5" in card
    assert "config hash: 0123456789abcdef" in card
    assert "roma-ds merge base router.safetensors --out merged\n" in card
    assert "roma-ds merge base.gguf router.safetensors --out merged.gguf\n" in card
    assert "Measured in float32" in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert table == [
        "| variant | average | mmlu | boolq |",
        "|---|---|---|---|",
        "| base | 50.00 | 40.0 ± 1.2 | 60.0 ± 1.2 |",
        "| roma | 62.50 | 50.0 ± 1.2 | 75.0 ± 1.2 |",
    ]


def test_a_base_model_on_the_hub_is_linked(tmp_path: Path) -> None:
    run = tiny_run(Path("/models/base"), tmp_path, "model.dtype=bfloat16")
    run = replace(run, model=replace(run.model, path="OWNER/base"))
    path = evaluation(tmp_path, "roma", 0.5, {"mmlu": 0.5})
    card = model_card(run, router(tmp_path), {"roma": path})
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "OWNER/base" and front["base_model_relation"] == "adapter"
    assert "license" not in front and "licence of the base model: not found with it" in card
    assert "Measured in bfloat16, where the routers have the values that rounding" in card


def test_accuracies_have_intervals_where_the_number_of_questions_is_known(tmp_path: Path) -> None:
    """Wilson's, as the textbook has it for 40 of 100."""
    task = {"accuracy": 0.4, "stderr": 0.05, "n": 100, "split": "test", "scoring": "letter", "shots": 5}
    write_json(tmp_path / "roma.json", {"variant": "roma", "tasks": {"mmlu": task}, "average": 0.4})
    card = model_card(tiny_run(Path("/m"), tmp_path), router(tmp_path), {"roma": tmp_path / "roma.json"})
    assert "| roma | 40.00 | 40.0 (30.9 to 49.8) |" in card
    assert "Asked: mmlu: 100 questions, split test, scored by letter, 5 shots." in card


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (None, None),
        ("# A model\nlicense: mit\n", None),
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: open-weights\n---\n", "open-weights"),
        ("---\nlanguage: en\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: [\n---\n", None),
    ],
)
def test_the_licence_is_that_of_the_base_models_card(
    tmp_path: Path, text: str | None, licence: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert base_licence(ModelConfig(path=str(tmp_path))) == licence
    assert base_licence(ModelConfig(path="nobody/no-such-model")) is None, "not in the cache"


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
