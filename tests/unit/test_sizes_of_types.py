"""What the planner reads off models whose layers, streams or heads lie otherwise than in most."""

from __future__ import annotations

import pytest
import torch

from roma_ds.families import detect
from roma_ds.families.attention_widths import attention_widths
from roma_ds.families.causal_lm import causal_lm
from roma_ds.families.counting import active_parameters, by_kind, counted
from roma_ds.planner.model_sizes import sizes_of
from roma_ds.testing.tiny_models import tiny_config

LAYERS = 6
STREAMS = {
    "dbrx": 0,
    "deepseek_v4": 3,
    "dots3_note_text": 0,
    "gemma4_text": 0,
    "hy_v4": 3,
    "inkling2_text": 1,
    "qwen4_exp_text": 2,
    "zaya": 2,
}
"""Types, and how many parameters outside the layers begin or join residual streams."""


@pytest.mark.parametrize("model_type", STREAMS)
def test_every_weight_is_in_its_layer_and_of_its_kind(model_type: str) -> None:
    config = tiny_config(model_type, 192, LAYERS)
    with torch.device("meta"):
        network = causal_lm(config, torch.float32, False)
    layout = detect(network)
    sizes = sizes_of(network, layout)
    assert sizes.total == sum(parameter.numel() for parameter in network.parameters())
    streams = [one for one in counted(network) if one.kind == "streams"]
    assert len(streams) == STREAMS[model_type]
    assert all(one.layer is None for one in streams)
    assert {module.layer for module in sizes.modules} == {None, *range(LAYERS)}
    gates = sum(site.rows * site.hidden for site in layout.sites)
    # A router may hold more than its gate, and all of it is counted as one.
    assert by_kind(counted(network))["router"] >= gates
    last = sizes.suffix(layout.layers[-1])
    assert 0 < last.total < sizes.total and last.training([layout.layers[-1]]).trained > 0


def test_where_heads_differ_from_layer_to_layer_the_widest_counts() -> None:
    config = tiny_config("dots3_note_text", 192, LAYERS)
    heads = [layer.num_attention_heads for layer in config.per_layer_config]
    assert sorted(set(heads)) == [2, 4]
    assert attention_widths(config) == attention_widths(config.per_layer_config[heads.index(4)])


@pytest.mark.parametrize(("model_type", "experts"), [("longcat_flash", 8), ("zaya", 8), ("olmoe", 8)])
def test_a_token_meets_the_experts_that_it_goes_to(model_type: str, experts: int) -> None:
    """Of which there are fewer than choices, in some types; one of them keeps unused rows for these."""
    config = tiny_config(model_type, 192, LAYERS, experts=experts)
    with torch.device("meta"):
        network = causal_lm(config, torch.float32, False)
    layout = detect(network)
    assert layout.networks == sizes_of(network, layout).experts == experts
    used = [values for name, values in network.named_parameters() if ".experts." in name]
    one = sum(values[0].numel() for values in used)
    rest = sum(values.numel() for name, values in network.named_parameters() if ".experts." not in name)
    assert active_parameters(network) == rest + layout.top_k * one
