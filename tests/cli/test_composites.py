"""A checkpoint of text and vision through the commands, and what `check` says of models that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.projects import RUN, Project, roma_ds_here, word_rows, write_rows
from cli.test_bad_input import refusal
from safetensors import safe_open

from roma_ds.families import Family
from roma_ds.testing.tiny_composites import save_composite
from roma_ds.testing.tiny_models import save_tokenizer

SUMS = [{"id": str(n), "question": f"w{n} w{n + 1}", "answer": f"{2 * n + 1}"} for n in range(5)]


def project(folder: Path) -> Project:
    """Data and a config; its model is still to be saved, in the folder `model`."""
    (folder / "model").mkdir()
    write_rows(folder / "train.jsonl", word_rows(16, 0))
    write_rows(folder / "test.jsonl", word_rows(8, 1000))
    write_rows(folder / "sums.jsonl", SUMS)
    (folder / "run.yaml").write_text(RUN.format(dtype="float32", epochs=1))
    return Project(folder, folder / "out")


def test_the_text_part_of_a_checkpoint_is_trained_evaluated_and_merged(tmp_path: Path) -> None:
    made = project(tmp_path)
    save_composite(tmp_path / "model", "gemma4")
    tasks = "[{name: words, path: test.jsonl}, {name: sums, path: sums.jsonl, scoring: generate}]"
    words = (f"eval.tasks={tasks}", "eval.max_new_tokens=4")
    checked = roma_ds_here(made.arguments("check", *words, ranks=1))
    assert checked.code == 0 and "4 layers, 8 experts, top-2" in checked.out, checked
    done = roma_ds_here(made.arguments("eval", *words, ranks=1))
    assert done.code == 0 and "eval roma: average accuracy" in done.out, done
    keys = [f"model.language_model.layers.{layer}.router.proj.weight" for layer in (2, 3)]
    assert sorted(made.routers()) == keys
    merged = tmp_path / "merged"
    router = made.out / "train" / "router.safetensors"
    done = roma_ds_here(["merge", str(tmp_path / "model"), str(router), "--out", str(merged)])
    assert done.code == 0, done
    with safe_open(merged / "model.safetensors", "pt") as file:
        assert any(key.startswith("model.vision_tower.") for key in file.keys())  # noqa: SIM118
    assert json.loads((merged / "config.json").read_text())["model_type"] == "gemma4"


def test_check_does_not_promise_what_eval_cannot_measure(tmp_path: Path) -> None:
    from transformers import AutoConfig

    made = project(tmp_path)
    save_tokenizer(tmp_path / "model")
    AutoConfig.for_model("siglip_vision_model", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    done = roma_ds_here(made.arguments("check", ranks=1))
    said = "transformers has no network of model type 'siglip_vision_model' that gives logits of text"
    refusal(done, said, "use a causal language model")
    assert "measures it" not in done.out


@pytest.mark.parametrize("asked", ["train.prefix_cache=on", "collect.engine=stream"])
def test_check_refuses_parts_of_a_model_that_can_only_be_run_whole(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roma_ds.testing.tiny_models import save_tiny

    made = project(tmp_path)
    save_tiny(tmp_path / "model", "granitemoeshared")
    assert roma_ds_here(made.arguments("check", asked, ranks=1)).code == 0

    def barrier(self: Any, capability: str) -> str | None:
        return "its layers read the stars" if capability == "suffix" else None

    monkeypatch.setattr(Family, "barrier", barrier)
    whole = roma_ds_here(made.arguments("check", ranks=1))
    assert whole.code == 0, whole
    for command in ("check", "run"):
        done = roma_ds_here(made.arguments(command, asked, ranks=1))
        refusal(done, "cannot be run alone: its layers read the stars", "set train.prefix_cache=off")
    assert not list(made.out.rglob("*"))
