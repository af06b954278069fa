"""MLX gives a base and its merged checkpoint the logits that transformers gives them.

Only where MLX is installed: the extra `engines`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from roma_ds.export.merge import GateDtype, merge
from roma_ds.storage.atomic import read_json
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

mx: Any = pytest.importorskip("mlx.core", reason="MLX is not installed (the extra engines)")
utils: Any = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed (the extra engines)")

IDS = [5, 6, 7, 8, 9, 20, 31]
GATES = {
    "olmoe": "mlp.gate",
    "qwen3_moe": "mlp.gate",
    "mixtral": "block_sparse_moe.gate",
    "deepseek_v3": "mlp.gate",
}
"""Router below a layer, by model type."""


@pytest.fixture(autouse=True)
def _on_the_cpu() -> None:
    mx.set_default_device(mx.cpu)


def published(folder: Path) -> None:
    """Write what published configs have and transformers 5 keeps elsewhere; MLX reads these alone."""
    config = read_json(folder / "config.json")
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.get("num_experts", config.get("num_local_experts"))
    (folder / "config.json").write_text(json.dumps(config))


def made(folder: Path, kind: str, dtype: str) -> tuple[Path, Path]:
    """A checkpoint, and a router file for its last layer."""
    base = save_tiny(folder / "base", kind, dtype=dtype)
    published(base)
    key = f"model.layers.3.{GATES[kind]}.weight"
    (stored,) = (found[key] for path in base.glob("*.safetensors") if key in (found := load_file(path)))
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(3))
    write_router_file(folder / "router.safetensors", {3: stored.float() + noise}, {3: key}, {})
    return base, folder / "router.safetensors"


def mlx_logits(folder: Path) -> Any:
    return utils.load_model(folder)[0](mx.array([IDS]))[0]


@torch.no_grad()
def stock_logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def far(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


@pytest.mark.parametrize("kind", GATES)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    base, router = made(tmp_path, kind, "float32")
    merge(base, router, tmp_path / "merged")
    before, after = mlx_logits(base), mlx_logits(tmp_path / "merged")
    assert far(before, stock_logits(base)) < 1e-6
    assert far(after, stock_logits(tmp_path / "merged")) < 1e-6
    assert far(before, after) > 1e-4, "the router does something"


@pytest.mark.parametrize(("gate_dtype", "runs_in"), [("float32", "float32"), ("stored", "bfloat16")])
def test_the_type_of_the_routers_decides_that_of_an_olmoe(
    gate_dtype: GateDtype, runs_in: str, tmp_path: Path
) -> None:
    """Why docs/serving.md says `--gate-dtype stored` for MLX."""
    base, router = made(tmp_path, "olmoe", "bfloat16")
    merge(base, router, tmp_path / "merged", gate_dtype)
    assert mlx_logits(base).dtype == mx.bfloat16
    assert mlx_logits(tmp_path / "merged").dtype == getattr(mx, runs_in)
