"""The published configs: every value is used, routers and kinds of parameters are where families say."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from roma_ds.errors import UserError
from roma_ds.families import FAMILIES, detect, family_of, published
from roma_ds.families.counting import KINDS, active_parameters, by_kind, counted
from roma_ds.families.published_networks import network, sizes

TYPES = {model_type for family in FAMILIES for model_type in family.model_types}
OF_A_FAMILY = [
    name for name in published.names() if published.published_model(name).config["model_type"] in TYPES
]
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


@pytest.mark.parametrize("name", OF_A_FAMILY)
def test_kinds_of_a_family_add_up_to_what_is_counted_without_it(name: str) -> None:
    found = sizes(built(name))
    kinds = by_kind(counted(built(name)))
    assert sum(kinds.values()) == found.total
    assert (kinds["routed experts"], kinds["embedding"]) == (found.routed, found.embedding)
    for embedding in (True, False):
        assert active_parameters(built(name), embedding=embedding) == found.active(embedding)


@pytest.mark.parametrize("name", OF_A_FAMILY)
def test_routers_are_where_the_config_says(name: str) -> None:
    network = built(name)
    layout = detect(network)
    routers = {parameter.layer for parameter in counted(network) if parameter.kind == "router"}
    assert tuple(sorted(layer for layer in routers if layer is not None)) == layout.layers
    assert layout.layers == layout.family.sparse_layers(network.config)
    routed = by_kind(counted(network))["routed experts"]
    assert routed > 0.5 * sum(parameter.numel() for parameter in network.parameters())


def test_every_family_has_a_published_model() -> None:
    found = {family_of(published.config(name)).name for name in OF_A_FAMILY}
    assert found == {family.name for family in FAMILIES}


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
    }
    assert tuple(totals) == KINDS
    # gpt-oss model card, arXiv 2508.10925, table 1: MLP 19.12B, attention 0.64B, both embeddings 1.16B.
    totals = by_kind(counted(built("gpt-oss-20b")))
    assert f"{(totals['routed experts'] + totals['router']) / 1e9:.2f}" == "19.12"
    assert f"{totals['attention'] / 1e9:.2f}" == "0.64"
    assert f"{(totals['embedding'] + totals['head']) / 1e9:.2f}" == "1.16"


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
