"""What training leaves alone, and that exported and merged routers give the logits of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Project, roma_ds

CHOSEN = (2, 3)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def finished(indexed: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained, evaluated and exported under ZeRO 3 on two ranks."""
    project = indexed.copied(tmp_path_factory.mktemp("frozen") / "out")
    done = project.run("run", "deepspeed=zero3")
    assert done.code == 0, done
    return project


@pytest.fixture(scope="module")
def merged(finished: Project) -> Path:
    router = finished.out / "export" / "router.safetensors"
    out = finished.out.parent / "merged"
    line = ("merge", str(finished.folder / "model"), str(router), "--out", str(out))
    done = roma_ds(*line, cwd=finished.folder)
    assert done.code == 0, done
    assert f"merged {len(CHOSEN)} routers" in done.out
    again = roma_ds(*line, cwd=finished.folder)
    assert again.code == 2 and "not empty" in again.err
    return out


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1, "the base is sharded, so that untouched shards are covered"
    return {name: value for file in files for name, value in load_file(file).items()}


def test_all_but_the_chosen_routers_is_bit_identical(finished: Project, merged: Path) -> None:
    import torch

    base, tuned = tensors(finished.folder / "model"), tensors(merged)
    chosen = {f"model.layers.{layer}.mlp.gate.weight" for layer in CHOSEN}
    assert base.keys() == tuned.keys() and chosen < base.keys()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == chosen
    assert {name for name in base if base[name].dtype != tuned[name].dtype} == set()


def test_exported_routers_are_the_trained_ones(finished: Project) -> None:
    from safetensors.torch import load_file

    trained, exported = (
        load_file(finished.out / folder / "router.safetensors") for folder in ("train", "export")
    )
    assert trained.keys() == exported.keys()
    assert all(bool((trained[name] == exported[name]).all()) for name in trained)


def stock_loglikelihoods(checkpoint: Path, samples: dict[str, list[Any]]) -> list[list[float]]:
    """Log-likelihood of each option, one prompt at a time, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    for prompt, options in zip(samples["prompt"], samples["options"], strict=True):
        ids = [tokenizer(prompt + option)["input_ids"] for option in options]
        with torch.no_grad():
            logits = model(torch.tensor([ids[0][:-1]])).logits[0, -1]
        assert all(option[:-1] == ids[0][:-1] for option in ids)
        values = torch.log_softmax(logits.double(), dim=-1)
        found.append([float(values[option[-1]]) for option in ids])
    return found


@pytest.mark.parametrize("variant", ["base", "roma"])
def test_stock_transformers_gives_the_engines_loglikelihoods(
    finished: Project, merged: Path, variant: str
) -> None:
    from roma_ds.storage.atomic import read_parquet

    samples = read_parquet(finished.out / "data" / "eval.parquet")
    evaluated = read_parquet(finished.out / "eval" / f"{variant}.samples.parquet")
    assert samples["id"] == evaluated["id"]
    checkpoint = merged if variant == "roma" else finished.folder / "model"
    stock = stock_loglikelihoods(checkpoint, samples)
    np.testing.assert_allclose(stock, evaluated["option_loglikelihoods"], atol=1e-5, rtol=0)
    assert [int(np.argmax(values)) for values in stock] == evaluated["predicted"]


def test_tuned_and_base_model_differ(finished: Project) -> None:
    from roma_ds.storage.atomic import read_parquet

    base, tuned = (
        np.array(read_parquet(finished.out / "eval" / f"{variant}.samples.parquet")["option_loglikelihoods"])
        for variant in ("base", "roma")
    )
    assert np.abs(base - tuned).max() > 1e-3
