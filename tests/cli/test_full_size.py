"""A checkpoint larger than the memory allowed: written, collected, trained, exported and merged."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_full_size_run_in_small(tmp_path: Path) -> None:
    from full_size import full_size, held
    from shapes import Shape

    published = Shape.of_published("olmoe-1b-7b")
    small = dataclasses.replace(
        published, layers=6, hidden=32, experts=4, top_k=2, expert_width=16, heads=2, key_value_heads=2,
        head_width=16, vocabulary=300, published="",
    )  # fmt: skip
    found = full_size(tmp_path, small, engine="stream")
    assert all(held(found).values()), found
    merged = found["merged"]
    assert merged["tensors"] == 3 + 6 * (9 + 3 * 4)
    assert merged["changed"] == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(1, 6)]
    assert merged["in_transformers"]["class"] == "OlmoeForCausalLM"


def test_a_tensor_that_changed_or_has_no_place_is_seen(tmp_path: Path) -> None:
    import torch
    from full_size import all_digests, merged_against_base
    from safetensors.torch import load_file, save_file
    from shapes import Shape, write_checkpoint

    base = write_checkpoint(tmp_path / "base", Shape(layers=2, hidden=16, experts=4, top_k=2, expert_width=8))
    before = all_digests(base)
    router = tmp_path / "router.safetensors"
    save_file({"model.layers.1.mlp.gate.weight": torch.zeros(4, 16)}, router)
    merged = write_checkpoint(
        tmp_path / "merged", Shape(layers=2, hidden=16, experts=4, top_k=2, expert_width=8)
    )
    assert merged_against_base(base, merged, before, router)["changed"] == []
    path = next(iter(merged.glob("*.safetensors")))
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = 2.0
    save_file(tensors, path, metadata={"format": "pt"})
    found = merged_against_base(base, merged, before, router)
    assert found["changed"] == ["model.norm.weight"] and found["index_is_complete"]
    assert not found["in_transformers"]["problems"]
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    found = merged_against_base(base, merged, before, router)
    assert found["changed"] == ["model.norm.weight"] and not found["index_is_complete"]
    assert "model.norm.weight" in str(found["in_transformers"]["problems"])


@pytest.mark.full_size
@pytest.mark.timeout(7200)
def test_olmoe_in_full_size(tmp_path: Path) -> None:
    from full_size import full_size, write_found
    from shapes import Shape

    shape, work = Shape.of_published("olmoe-1b-7b"), tmp_path / "work"
    found = full_size(work, shape)
    assert write_found(found, shape, tmp_path / "results"), found
    assert found["checkpoint_bytes"] > 13.8e9
    shutil.rmtree(work)
