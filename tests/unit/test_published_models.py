"""The published configs: every value is used, routers and kinds of parameters are where families say."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from roma_ds.checkpoint.span import skeleton
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import FAMILIES, detect, family_of, published
from roma_ds.families.causal_lm import unfilled
from roma_ds.families.counting import KINDS, active_parameters, by_kind, counted
from roma_ds.families.published_networks import network, sizes

WITHOUT_RECORD = {"JetMoE", "DBRX"}
"""Families that are there for how they route: no copy of a published config of theirs was found."""
LEGACY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
OF_FULL_ATTENTION = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
"""Keys that transformers turns into values of single layers."""
built = cache(network)


@pytest.mark.parametrize("name", published.names())
def test_every_value_of_a_config_is_used(name: str) -> None:
    written, config = published.published_model(name).config, published.config(name)
    known = {*type(config)().to_dict(), *config.attribute_map, *vars(type(config)), "head_dim"}
    config.allow_global_per_layer_attribute_access = True
    for key, value in written.items():
        if key in OF_FULL_ATTENTION:
            layer = config.layer_types.index("full_attention")
            assert getattr(config.per_layer_config[layer], OF_FULL_ATTENTION[key]) == value
        elif key not in LEGACY:
            assert key in known, f"{name} has no {key}"
            assert getattr(config, key) == value
    if "rope_theta" not in written:
        return
    rotary = config.rope_parameters
    # Per kind of layer where a model has several.
    for values in [rotary] if "rope_theta" in rotary else rotary.values():
        assert values["rope_theta"] == written["rope_theta"]
        for key, value in written.get("rope_scaling", {}).items():
            assert values.get(key, values.get(f"rope_{key}")) == value
        assert values.get("partial_rotary_factor") == written.get("partial_rotary_factor")


@pytest.mark.parametrize("name", published.names())
def test_kinds_of_a_family_add_up_to_what_is_counted_without_it(name: str) -> None:
    found = sizes(built(name))
    kinds = by_kind(counted(built(name)))
    assert sum(kinds.values()) == found.total
    assert (kinds["routed experts"], kinds["embedding"]) == (found.routed, found.embedding)
    for embedding in (True, False):
        assert active_parameters(built(name), embedding=embedding) == found.active(embedding)


@pytest.mark.parametrize("name", published.names())
def test_routers_are_where_the_config_says(name: str) -> None:
    network = built(name)
    layout = detect(network)
    routers = {parameter.layer for parameter in counted(network) if parameter.kind == "router"}
    assert tuple(sorted(layer for layer in routers if layer is not None)) == layout.layers
    assert layout.layers == layout.family.sparse_layers(network.config)
    routed = by_kind(counted(network))["routed experts"]
    assert routed > 0.5 * sum(parameter.numel() for parameter in network.parameters())


def test_every_family_has_a_published_model() -> None:
    found = {family_of(published.config(name)) for name in published.names()}
    assert found == {family for family in FAMILIES if family.name not in WITHOUT_RECORD}


def test_large_experts_are_made_without_memory() -> None:
    """Also where a class fills them with zeros: in bfloat16 they would take 21 GB in each of 24 layers."""
    with unfilled():
        assert torch.zeros(2**24).is_meta and torch.zeros((2**12, 2**12), dtype=torch.bfloat16).is_meta
        assert not torch.zeros(2**10).is_meta and not torch.zeros(2**24, device="cpu").is_meta
    model = ModelConfig(path="llama-4-maverick", dtype="bfloat16")
    network = skeleton(model, config=published.config("llama-4-maverick"))
    assert all(weight.is_meta and weight.dtype == torch.bfloat16 for weight in network.parameters())
    assert not any(values.is_meta for values in network.buffers())


@pytest.mark.parametrize(
    ("name", "share"),
    [("olmoe-1b-7b", "0.0095%"), ("deepseekmoe-16b", "0.0040%"), ("qwen3-30b-a3b", "0.0043%")],
)
def test_trained_routers_are_the_share_that_the_paper_states(name: str, share: str) -> None:
    # arXiv 2511.07419, table of models: routers of the last 5 layers.
    layout = detect(built(name))
    chosen = layout.choose("last5")
    trained = sum(site.experts * site.hidden for site in layout.sites if site.layer in chosen)
    assert f"{trained / sum(weight.numel() for weight in built(name).parameters()):.4%}" == share
    if name == "olmoe-1b-7b":
        assert trained == 655_360


def test_kinds_are_counted_as_the_architecture_says() -> None:
    hidden, sparse = 2048, 27
    totals = by_kind(counted(built("deepseekmoe-16b")))
    assert totals == {
        "embedding": 102400 * hidden,
        "attention": 28 * 4 * hidden * hidden,
        "dense MLP": 3 * hidden * 10944,
        "routed experts": sparse * 64 * 3 * hidden * 1408,
        "shared experts": sparse * 3 * hidden * 2 * 1408,
        "router": sparse * 64 * hidden,
        "norm": (2 * 28 + 1) * hidden,
        "head": 102400 * hidden,
        "streams": 0,
    }
    assert tuple(totals) == KINDS
    # gpt-oss model card, arXiv 2508.10925, table 1: MLP 19.12B, attention 0.64B, both embeddings 1.16B.
    totals = by_kind(counted(built("gpt-oss-20b")))
    assert f"{(totals['routed experts'] + totals['router']) / 1e9:.2f}" == "19.12"
    assert f"{totals['attention'] / 1e9:.2f}" == "0.64"
    assert f"{(totals['embedding'] + totals['head']) / 1e9:.2f}" == "1.16"


def test_kinds_of_layers_that_are_one_thing_each() -> None:
    """Nemotron 3 Nano: Mamba-2 and attention mix tokens, the other layers are a router and experts."""
    config, totals = (
        published.config("nemotron-3-nano-30b-a3b"),
        by_kind(counted(built("nemotron-3-nano-30b-a3b"))),
    )
    hidden, inner, state, heads = 2688, 64 * 64, 8 * 128, 64
    convolved = inner + 2 * state
    mamba = hidden * (inner + convolved + heads) + convolved * (4 + 1) + 3 * heads + inner * hidden
    attention = 128 * hidden * (2 * 32 + 2 * 2)
    numbers = {kind: config.layer_types.count(kind) for kind in ("linear_attention", "full_attention", "moe")}
    assert totals["attention"] == numbers["linear_attention"] * mamba + numbers["full_attention"] * attention
    assert totals["shared experts"] == numbers["moe"] * 2 * hidden * 3712
    assert totals["router"] == numbers["moe"] * 128 * hidden and totals["dense MLP"] == 0


def test_correction_biases_that_are_parameters_count_as_router() -> None:
    totals = by_kind(counted(built("trinity-mini")))
    assert totals["router"] == 30 * 128 * (2048 + 1)


def test_layers_and_order_of_the_parameters() -> None:
    network = built("qwen1.5-moe-a2.7b")
    found = counted(network)
    assert [parameter.name for parameter in found] == [name for name, _ in network.named_parameters()]
    kinds = {
        parameter.name.partition(".mlp.")[2]: parameter.kind for parameter in found if parameter.layer == 7
    }
    assert kinds["gate.weight"] == "router"
    assert kinds["shared_expert_gate.weight"] == kinds["shared_expert.up_proj.weight"] == "shared experts"
    assert kinds["experts.down_proj"] == "routed experts"
    assert {parameter.kind for parameter in found if parameter.layer is None} == {"embedding", "norm", "head"}


def test_a_tied_head_is_counted_once() -> None:
    totals = by_kind(counted(built("granite-3.1-1b-a400m")))
    assert totals["head"] == 0
    assert totals["embedding"] == 49155 * 1024


def test_a_parameter_in_an_unknown_place_is_no_guess() -> None:
    config = published.config("granite-3.1-1b-a400m")
    config.num_hidden_layers = 1
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
        network.model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model\.extra\.weight is none of"):
        counted(network)


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no published model is called 'olmoe'") as caught:
        published.published_model("olmoe")
    assert all(name in str(caught.value.fix) for name in published.names())


def test_the_page_shows_what_the_families_and_configs_say() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("model_tables", docs / "model_tables.py")
    assert spec is not None and spec.loader is not None
    printer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printer)
    page = (docs / "models.md").read_text()
    for table in printer.tables({name: built(name) for name in published.names()}):
        assert table in page, f"docs/models.md lacks what python docs/model_tables.py prints:\n{table}"
