from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from roma_ds.checkpoint.loading import load_config
from roma_ds.cli.listing import lines
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import FAMILIES, Family, detect, family_of, has_routers
from roma_ds.families.capability import Limit
from roma_ds.families.composite import text_part
from roma_ds.families.recorded import recorded_family
from roma_ds.families.registry import _checked
from roma_ds.families.unusable_config import UnusableConfig
from roma_ds.testing.tiny_models import random_model, tiny_config

TYPES = {"olmoe": "OLMoE", "qwen3_moe": "Qwen3-MoE"}


def small(model_type: str, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8,
        "num_hidden_layers": 5, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "num_experts": 6, "num_experts_per_tok": 3, "pad_token_id": 0,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **changes}))


@pytest.fixture(scope="module")
def olmoe() -> Any:
    return small("olmoe")


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_all_routers_are_found_in_layer_order(model_type: str) -> None:
    # Twelve layers: in the order of names, layer 10 would come before layer 2.
    model = small(model_type, num_hidden_layers=12)
    layout = detect(model)
    assert layout.family.name == TYPES[model_type]
    assert layout.layers == tuple(range(12))
    assert (layout.experts, layout.top_k) == (6, 3)
    for site in layout.sites:
        module = model.get_submodule(site.module)
        assert module is model.model.layers[site.layer].mlp.gate
        assert module.weight.shape == (site.experts, site.hidden) == (6, 16)


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_gate_keys_are_those_of_the_saved_checkpoint(model_type: str, tmp_path: Path) -> None:
    model = small(model_type)
    layout = detect(model)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        for site in layout.sites:
            saved = file.get_tensor(layout.gate_key(site.layer))
            assert torch.equal(saved, model.get_parameter(f"{site.product}.weight"))


def test_dense_layers_of_a_sparse_model_are_no_routers() -> None:
    layout = detect(small("qwen3_moe", num_hidden_layers=6, mlp_only_layers=[0, 3], decoder_sparse_step=1))
    assert layout.layers == (1, 2, 4, 5)
    assert layout.choose("first2") == (1, 2)
    assert layout.choose("last3") == (2, 4, 5)
    with pytest.raises(UserError, match=r"\[3\], which have no router"):
        layout.choose([1, 3])


def test_choices_of_layers(olmoe: Any) -> None:
    layout = detect(olmoe)
    assert layout.choose("last2") == (3, 4)
    assert layout.choose("first1") == (0,)
    assert layout.choose("last5") == layout.choose("first5") == layout.choose("all") == (0, 1, 2, 3, 4)
    assert layout.choose([4, 0, 4]) == (0, 4)
    assert layout.choose((2,)) == (2,)


@pytest.mark.parametrize("layers", ["last6", "first6", [5], [-1], [0, 99]])
def test_layers_that_the_model_has_not_are_refused(olmoe: Any, layers: Any) -> None:
    with pytest.raises(UserError) as caught:
        detect(olmoe).choose(layers)
    assert caught.value.fix


def test_too_many_layers_names_how_many_there_are(olmoe: Any) -> None:
    with pytest.raises(UserError, match=r"roma\.layers is last9, but the model has 5 MoE layers") as caught:
        detect(olmoe).choose("last9")
    assert caught.value.fix == "use last5 or all"


def test_a_dense_model_is_refused_with_the_known_types() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=1)
    with pytest.raises(UserError, match="model type 'llama' has no routers") as caught:
        family_of(config)
    assert all(model_type in str(caught.value.fix) for model_type in TYPES)


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "qwen3_vl_moe_text"])
def test_a_sparse_model_without_a_causal_lm_is_not_called_dense(model_type: str) -> None:
    said = (
        r"'qwen3_vl_moe_text' may be sparse \(num_experts=60\), but transformers has no causal language model"
    )
    with pytest.raises(UserError, match=said):
        family_of(text_part(AutoConfig.for_model(model_type)))


@pytest.mark.parametrize("model_type", ["llama4", "llama4_text"])
def test_routers_without_a_record_of_their_own_class_are_found(model_type: str) -> None:
    config = text_part(AutoConfig.for_model(model_type))
    family = family_of(config)
    assert (config.model_type, family.experts(config), family.top_k(config)) == ("llama4_text", 16, 1)
    assert family.sparse_layers(config) == tuple(range(48))


def test_a_router_that_mixes_tokens_is_refused_with_that_reason() -> None:
    with pytest.raises(UserError, match="'doge' has routers, but its router mixes the tokens of a batch"):
        family_of(AutoConfig.for_model("doge", is_moe=True))


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "no layer has routers"),
        ("nemotron_h", {"layers_block_type": ["mlp", "linear_attention"]}, "no layer has routers"),
        ("granitemoehybrid", {"num_local_experts": 0}, "num_local_experts is 0"),
        ("gemma4_text", {"enable_moe_block": False}, "enable_moe_block is false"),
        ("jamba", {"num_experts": 1}, "num_experts is 1"),
    ],
)
def test_a_dense_model_of_a_sparse_type_is_a_dense_model(
    model_type: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """As the smaller ones of some families are published."""
    config = tiny_config(model_type, 100, **changes)
    with pytest.raises(UserError, match=f"has no routers: {says}") as caught:
        family_of(config)
    assert not isinstance(caught.value, UnusableConfig) and not has_routers(config)
    random_model(config).save_pretrained(tmp_path)
    assert not has_routers(load_config(ModelConfig(path=str(tmp_path))))


NOT_FOUND = ("phimoe", "deepseek", "jetmoe", "dbrx")
"""Types that need their file: scores among rivals, an own class, two routers, sizes in a config's parts."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_file_says_of_routers_what_is_seen_in_a_trial_of_them(family: Family) -> None:
    config = tiny_config(family.model_types[0], 100, layers=8)
    try:
        found = recorded_family(config)
    except UserError:
        found = None
    assert (found is None) == (family.model_types[0] in NOT_FOUND)
    if found is None:
        return
    for name in (
        *("router_class", "gate_key", "scoring", "weight", "logits_from", "logits_at", "indices_at"),
        *("zero_experts", "joint_rows", "hidden", "carried", "returned", "layers", "embedding", "head"),
    ):
        assert getattr(found, name) == getattr(family, name), name
    for name in ("experts", "gate_rows", "gate_width", "top_k", "depth", "sparse_layers"):
        assert getattr(found, name)(config) == getattr(family, name)(config), name


def test_what_a_file_knows_nothing_of_is_left_to_detection() -> None:
    """Keys and values that layers share, and inputs by layer, are no part of a suffix here."""
    config = tiny_config("gemma4_text", 100, num_kv_shared_layers=2)
    family = family_of(config)
    assert family.name == "gemma4_text" and "shared_kv_states" in str(family.barrier("suffix"))
    assert family_of(tiny_config("gemma4_text", 100)).barrier("suffix") is None


@pytest.mark.parametrize("change", [{"num_experts": 7}, {"hidden_size": 17}])
def test_weights_that_disagree_with_the_config_are_refused(change: dict[str, int]) -> None:
    model = small("olmoe")
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(UserError, match=r"has shape \(6, 16\), the config says"):
        detect(model)


def test_partitioned_weights_are_read_by_their_full_shape() -> None:
    model = small("olmoe")
    for layer in model.model.layers:
        weight = layer.mlp.gate.weight
        weight.ds_shape = weight.shape
        weight.data = torch.zeros(0)
    assert detect(model).experts == 6


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gate_key": "model.layers.3.mlp.gate.weight"}, "is none of a layer"),
        ({"scoring": "tanh"}, "scoring tanh is none of"),
        ({"selection": ""}, "is empty"),
        ({"limits": (Limit("fly", "experimental", "no wings"),)}, "names no known capability"),
        ({"limits": (Limit("merge", "experimental", ""),)}, "or no reason"),
    ],
)
def test_a_family_that_makes_no_sense_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        _checked((replace(FAMILIES[0], **changes),))


def test_the_list_of_families_says_how_far_each_is_supported_and_why() -> None:
    found = list(lines("families", Path()))
    assert len(found) == len(FAMILIES)
    for line, family in zip(found, FAMILIES, strict=True):
        assert line.startswith(f"{family.name} ") and f" {family.support} " in line
        assert all(model_type in line for model_type in family.model_types)
        assert line.endswith(family.reason or family.model_types[-1])


def test_routers_that_the_config_does_not_state_are_refused() -> None:
    model = small("qwen3_moe", mlp_only_layers=[1])
    model.config.mlp_only_layers = [2]
    with pytest.raises(UserError, match=r"layers \[0, 2, 3, 4\] have routers, by the config it would be"):
        detect(model)


def test_families_share_no_model_type() -> None:
    with pytest.raises(ValueError, match="belongs to"):
        _checked((FAMILIES[0], FAMILIES[0]))
