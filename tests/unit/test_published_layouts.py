"""Checkpoints as they are published, where that is not what `save_pretrained` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import model_config
from transformers import CONFIG_MAPPING

from roma_ds.checkpoint.blueprint import blueprint, check_checkpoint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.errors import UserError
from roma_ds.export.merge import merge
from roma_ds.families import published
from roma_ds.families.config_values import RUN_BY_US, settled
from roma_ds.families.library_network import library_class
from roma_ds.testing.tiny_models import save_tiny, tiny_config
from roma_ds.testing.tiny_sizes import MOE_TYPES

DEPTH = 4
LAYER = [
    f"model.layers.{DEPTH}.{name}.weight"
    for name in ("eh_proj", "enorm", "hnorm", "mlp.gate", "mlp.experts.0.up_proj", "shared_head.norm")
]
"""One more decoder layer, which predicts a further token."""
OUTSIDE = [f"mtp.{name}.weight" for name in ("fc", "norm", "layers.0.mlp.gate", "layers.0.self_attn.q_proj")]
INSIDE = [f"model.{name}" for name in OUTSIDE]
FURTHER = {
    **dict.fromkeys(("bailing_hybrid", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite"), LAYER),
    **dict.fromkeys(("glm_moe_dsa", "hy_v3"), LAYER),
    **dict.fromkeys(("exaone_moe", "mellum", "nemotron_h", "qwen3_5_moe_text", "qwen3_next"), OUTSIDE),
    **dict.fromkeys(("inkling_text", "longcat_flash", "mimo_v2_flash"), INSIDE),
    "deepseek_v4": ["mtp.0.ffn.gate.weight", "mtp.0.hc_head_fn", "mtp.0.attn.wq_a.weight"],
    "ernie4_5_moe": ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight"],
    "hy_v4": ["model.mtp_layers.0.mlp.gate.weight", "model.mtp_layers.0.eh_proj.weight"],
}
"""Tensors by which published checkpoints of a type predict further tokens."""


def with_tensors(folder: Path, *names: str, without: str = "nothing") -> Path:
    """A saved checkpoint with further tensors in it, and without those whose key has `without` in it."""
    found = load_file(folder / "model.safetensors")
    kept = {key: values for key, values in found.items() if without not in key}
    more = {name: torch.full((3,), 7.0) for name in names}
    save_file(kept | more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def gate_file(folder: Path, path: Path) -> str:
    """A router file with one gate of the checkpoint, all ones; returns its key."""
    files = CheckpointFiles(model_config(folder))
    layout = blueprint(model_config(folder), files).layout
    key = layout.gate_key(layout.layers[-1])
    save_file({key: torch.ones(files.place(key).shape)}, path)
    return key


@pytest.mark.parametrize("model_type", sorted(FURTHER))
def test_layers_for_further_tokens_are_left_alone_and_kept(model_type: str, tmp_path: Path) -> None:
    names = FURTHER[model_type]
    base = with_tensors(save_tiny(tmp_path / "base", model_type, DEPTH), *names)
    check_checkpoint(model_config(base))
    key = gate_file(base, tmp_path / "router.safetensors")
    merge(base, tmp_path / "router.safetensors", tmp_path / "merged")
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert new.keys() == old.keys() >= set(names)
    assert [name for name in old if not torch.equal(old[name], new[name])] == [key]


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("deepseek_v3", [name for name in LAYER if "eh_proj" not in name]),
        ("deepseek_v3", ["model.layers.1.eh_proj.weight"]),
        ("qwen3_next", ["model.mtpx.weight"]),
        ("olmoe", [f"model.layers.{DEPTH}.mlp.gate.weight"]),
    ],
)
def test_what_only_looks_like_them_is_named(model_type: str, names: list[str], tmp_path: Path) -> None:
    base = with_tensors(save_tiny(tmp_path / "base", model_type, DEPTH), *names)
    with pytest.raises(UserError, match=f"{len(names)} tensors belong nowhere: "):
        check_checkpoint(model_config(base))


def test_norms_and_biases_of_the_released_axk1_are_as_the_library_has_them(tmp_path: Path) -> None:
    """The norm of a block's output lies beside it, in dense layers too, and no correction bias is stored."""
    folder = save_tiny(tmp_path / "model", "axk1", DEPTH)
    stored = load_file(folder / "model.safetensors")
    assert f"model.layers.{DEPTH - 1}.post_mlp_layernorm.weight" in stored
    norm = torch.full_like(stored["model.layers.1.post_mlp_layernorm.weight"], 2.0)
    stored = {key: values for key, values in stored.items() if "e_score_correction_bias" not in key}
    stored["model.layers.0.post_mlp_layernorm.weight"] = norm
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    check_checkpoint(model_config(folder))
    network = load_span(model_config(folder), Span.suffix(0, DEPTH), None, torch.device("cpu"))
    config = load_config(model_config(folder))
    stock = library_class(config).from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(network(input_ids=ids).logits, stock(input_ids=ids).logits)
    assert not network.model.layers[1].mlp.gate.e_score_correction_bias.any()
    # Of a type that does not go without it, it is missing.
    other = with_tensors(save_tiny(tmp_path / "other", "deepseek_v3", DEPTH), without="correction_bias")
    with pytest.raises(UserError, match="3 tensors are missing"):
        check_checkpoint(model_config(other))


@pytest.mark.parametrize("model_type", ["gemma4_text", "lfm2_moe", "zaya"])
def test_an_index_may_list_a_tied_head(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", model_type, DEPTH)
    keys = load_file(folder / "model.safetensors").keys()
    assert "lm_head.weight" not in keys
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    placed = dict.fromkeys([*keys, "lm_head.weight"], "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    check_checkpoint(model_config(folder))
    gate_file(folder, tmp_path / "router.safetensors")
    assert merge(folder, tmp_path / "router.safetensors", tmp_path / "merged")["tensors"] == len(keys)
    for lost in ("other.weight", "model.layers.1.other.weight"):
        index = {"weight_map": placed | {lost: "a.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=f"lacks {lost}, which the index places there"):
            check_checkpoint(model_config(folder))


def test_gates_are_known_under_keys_of_another_layout(tmp_path: Path) -> None:
    """As the network has them, where `save_pretrained` writes others."""
    folder = save_tiny(tmp_path / "base", "granitemoehybrid", DEPTH)
    stored = load_file(folder / "model.safetensors")
    renamed = {key.replace("router.layer.weight", "router.weight"): values for key, values in stored.items()}
    assert renamed.keys() != stored.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    key = gate_file(folder, tmp_path / "router.safetensors")
    assert key.endswith("block_sparse_moe.router.weight")
    assert merge(folder, tmp_path / "router.safetensors", tmp_path / "merged")["routers"] == 1
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight, which is no router"):
        merge(folder, tmp_path / "wrong.safetensors", tmp_path / "other")


def test_layers_of_nemotron_are_read_from_its_pattern(tmp_path: Path) -> None:
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    values = dict(published.published_model("nemotron-3-nano-30b-a3b").config)
    del values["layers_block_type"]
    values |= {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_config(model_config(tmp_path))
    wanted = published.config("nemotron-3-nano-30b-a3b")
    assert config.num_hidden_layers == len(pattern) == 52
    assert config.layer_types == wanted.layer_types and config.layer_types[5] == "full_attention"


@pytest.mark.parametrize("model_type", MOE_TYPES)
def test_no_key_that_a_config_writes_is_left_out_when_it_is_read(model_type: str) -> None:
    saved = tiny_config(model_type, 192).to_diff_dict()
    kind: Any = CONFIG_MAPPING[model_type]
    found = kind.from_dict(settled(kind, saved, "config.json")).to_dict()
    wanted = kind.from_dict(dict(saved)).to_dict()
    assert {key for key in wanted if found.get(key) != wanted[key]} <= RUN_BY_US
