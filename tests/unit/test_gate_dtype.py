"""The type of merged routers: the router file's float32, or what the base has them in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from roma_ds.errors import UserError
from roma_ds.export.merge import GateDtype, merge
from roma_ds.storage.atomic import read_json
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

KEY = "model.layers.2.mlp.gate.weight"


def tuned(base: Path) -> torch.Tensor:
    """Updates that bfloat16 and float16 have no room for."""
    return held(base)[KEY].float() * (1 + 2**-12)


def router_file(folder: Path, weight: torch.Tensor) -> Path:
    write_router_file(folder / "router.safetensors", {2: weight}, {2: KEY}, {})
    return folder / "router.safetensors"


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_stored_rounds_to_the_type_of_the_base(tmp_path: Path, dtype: str) -> None:
    base = save_tiny(tmp_path / "base", dtype=dtype, shard_size="40KB")
    weight = tuned(base)
    merge(base, router_file(tmp_path, weight), tmp_path / "merged", "stored")
    before, after = held(base), held(tmp_path / "merged")
    assert after[KEY].dtype == getattr(torch, dtype)
    assert torch.equal(after[KEY], weight.to(getattr(torch, dtype)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if key != KEY)
    indexes = [read_json(path / "model.safetensors.index.json") for path in (base, tmp_path / "merged")]
    assert indexes[0]["metadata"]["total_size"] == indexes[1]["metadata"]["total_size"]


def test_without_a_word_routers_are_float32(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype="bfloat16")
    weight = tuned(base)
    merge(base, router_file(tmp_path, weight), tmp_path / "merged")
    assert torch.equal(held(tmp_path / "merged")[KEY], weight)


@pytest.mark.parametrize("gate_dtype", ["float32", "stored"])
def test_the_library_loads_both_in_the_type_of_the_config(tmp_path: Path, gate_dtype: str) -> None:
    """What decision 9 rests on: a float32 gate does no harm, and brings nothing unless it is asked for."""
    base = save_tiny(tmp_path / "base", dtype="bfloat16")
    weight = tuned(base)
    how: GateDtype = "stored" if gate_dtype == "stored" else "float32"
    merge(base, router_file(tmp_path, weight), tmp_path / "m", how)
    gate = AutoModelForCausalLM.from_pretrained(tmp_path / "m").get_parameter(KEY)
    assert torch.equal(gate, weight.bfloat16())
    gate = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).get_parameter(KEY)
    assert torch.equal(gate, weight if gate_dtype == "float32" else weight.bfloat16().float())


def test_a_value_too_large_for_the_stored_type_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype="float16")
    router = router_file(tmp_path, tuned(base) + 1e6)
    with pytest.raises(UserError, match=r"stored as F16 in .*, and has a value too large") as refused:
        merge(base, router, tmp_path / "merged", "stored")
    assert refused.value.fix == "merge with --gate-dtype float32" and not (tmp_path / "merged").exists()
    merge(base, router, tmp_path / "merged")


def test_a_type_that_no_router_is_written_in_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (path,) = base.glob("*.safetensors")
    values = load_file(path)
    router = router_file(tmp_path, values[KEY])
    save_file({**values, KEY: values[KEY].double()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{KEY} is stored as F64"):
        merge(base, router, tmp_path / "merged", "stored")
