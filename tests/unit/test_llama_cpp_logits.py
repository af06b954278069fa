"""llama.cpp gives a merged GGUF file the logits that transformers gives the merged checkpoint.

Only where llama.cpp is installed: the extra `engines`, by the package cyllama.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import add
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from roma_ds.export.merge import merge
from roma_ds.export.merge_gguf import merge_gguf
from roma_ds.storage.atomic import read_json
from roma_ds.storage.gate_digest import gate_digests
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.training.stage import write_router_file

llama_cpp: Any = pytest.importorskip("cyllama.llama.llama_cpp", reason="llama.cpp is not installed (cyllama)")

IDS = [5, 6, 7, 8, 9, 20, 31]
LAYERS = (2, 3)
ARCHITECTURES = {"olmoe": ("olmoe", False), "qwen3_moe": ("qwen3moe", True)}
"""By model type: llama.cpp's name of it, and what it takes `norm_topk_prob` to be."""
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
    """cyllama asks its model for n_vocab, which it has not."""

    @property
    def n_vocab(self) -> int:
        return int(self.get_vocab().n_vocab)


def gate(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.weight"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def write_gguf(folder: Path, path: Path, architecture: str, experts: str = "F32", **split: Any) -> Path:
    """A whole checkpoint as a GGUF file, all in float32 but the experts."""
    config = read_json(folder / "config.json")
    values = {key: value.float().numpy() for key, value in weights(folder).items()}
    writer = gguf.GGUFWriter(path, architecture, **split)
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    count = config.get("num_experts", config.get("num_local_experts"))
    writer.add_expert_count(count)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    add(writer, "token_embd.weight", values["model.embed_tokens.weight"], "F32")
    add(writer, "output_norm.weight", values["model.norm.weight"], "F32")
    add(writer, "output.weight", values["lm_head.weight"], "F32")
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in NAMES.items():
            add(writer, f"blk.{layer}.{theirs}.weight", values[f"model.layers.{layer}.{ours}.weight"], "F32")
        for part in ("gate", "up", "down"):
            keys = [f"model.layers.{layer}.mlp.experts.{one}.{part}_proj.weight" for one in range(count)]
            stacked = np.stack([values[key] for key in keys])
            add(writer, f"blk.{layer}.ffn_{part}_exps.weight", stacked, experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_logits(path: Path, exact: bool = True) -> np.ndarray:
    wanted, held = llama_cpp.LlamaModelParams(), llama_cpp.LlamaContextParams()
    wanted.n_gpu_layers, held.n_ctx, held.n_batch = 0, 64, 64
    if exact:
        # Keys and values in float32, and attention by plain products: its one kernel rounds to float16.
        held.type_k = held.type_v = held.flash_attn_type = 0
    model = Model(str(path), wanted, verbose=False)
    context = llama_cpp.LlamaContext(model, held, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(IDS), embd=0, n_seq_max=1)
    batch.set_batch(IDS, 0, True)
    context.decode(batch)
    return np.array([list(context.get_logits_ith(place)) for place in range(len(IDS))])


@torch.no_grad()
def stock_logits(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def made(folder: Path, kind: str, normed: bool) -> tuple[Path, Path]:
    """A checkpoint whose config says `normed`, and a router file for it."""
    base = save_tiny(folder / "base", kind)
    config = read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps({**config, "norm_topk_prob": normed}))
    gates = {layer: weights(base)[gate(layer)] for layer in LAYERS}
    generator = torch.Generator().manual_seed(3)
    tuned = {layer: one + torch.randn(one.shape, generator=generator) for layer, one in gates.items()}
    facts = {"base_layers": str(config["num_hidden_layers"]), **gate_digests(gates)}
    write_router_file(folder / "router.safetensors", tuned, {layer: gate(layer) for layer in LAYERS}, facts)
    return base, folder / "router.safetensors"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_are_those_of_the_merged_checkpoint(tmp_path: Path, kind: str) -> None:
    architecture, normed = ARCHITECTURES[kind]
    base, router = made(tmp_path, kind, normed)
    file = write_gguf(base, tmp_path / "base.gguf", architecture)
    assert merge_gguf(file, router, tmp_path / "tuned.gguf")["compared"] is None
    merge(base, router, tmp_path / "merged")
    tuned = llama_logits(tmp_path / "tuned.gguf")
    assert far(tuned, stock_logits(tmp_path / "merged")) < 1e-6
    assert far(llama_logits(file), stock_logits(base)) < 1e-6
    assert 1e-5 < far(llama_logits(file, exact=False), stock_logits(base)) < 1e-3
    assert far(tuned, llama_logits(file)) > 5e-3, "the routers do something"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_renormalisation_is_its_own_and_not_that_of_the_config(tmp_path: Path, kind: str) -> None:
    architecture, normed = ARCHITECTURES[kind]
    base, _ = made(tmp_path, kind, not normed)
    file = write_gguf(base, tmp_path / "base.gguf", architecture)
    assert far(llama_logits(file), stock_logits(base)) > 2e-3


def test_a_split_file_with_quantised_experts_runs_as_the_whole_one(tmp_path: Path) -> None:
    base, router = made(tmp_path, "olmoe", False)
    whole = write_gguf(base, tmp_path / "whole.gguf", "olmoe", "Q8_0")
    merge_gguf(whole, router, tmp_path / "whole-tuned.gguf")
    write_gguf(base, tmp_path / "split.gguf", "olmoe", "Q8_0", split_max_tensors=12)
    parts = merge_gguf(min(tmp_path.glob("split-*.gguf")), router, tmp_path / "tuned.gguf")["files"]
    assert len(parts) > 2
    assert np.array_equal(llama_logits(parts[0]), llama_logits(tmp_path / "whole-tuned.gguf"))
