"""The published configs, built without weights, have the sizes that publishers and checkpoints state."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from roma_ds.families import published
from roma_ds.families.published_networks import as_stated, network, sizes

MTP, VISION = "multi-token prediction", "vision"
BIASES = "correction biases"
built = cache(network)


def spelled(count: int, like: str) -> set[str]:
    """A count in the unit and significant digits of `like`, such as 6.9B: rounded, and cut."""
    exact = Decimal(count) / {"B": 10**9, "M": 10**6}[like[-1]]
    step = Decimal(1).scaleb(int(Decimal(like[:-1]).normalize().as_tuple().exponent))
    ways = (ROUND_HALF_UP, ROUND_DOWN)
    return {f"{(exact / step).quantize(Decimal(1), way) * step:f}{like[-1]}" for way in ways}


def figure(text: str) -> float:
    unit = {"B": 10**9, "M": 10**6}.get(text[-1])
    return float(text[:-1]) * unit if unit else float(text)


def precision(text: str) -> float:
    """How far a number can lie from a figure that is cut to the digits of `text`, relative to it."""
    return 10.0 ** int(Decimal(text[:-1]).normalize().as_tuple().exponent) / float(text[:-1])


def test_digits_are_rounded_or_cut() -> None:
    assert spelled(6_919_161_856, "6.9B") == {"6.9B"}
    assert spelled(21_825_437_888, "21B") == {"21B", "22B"}
    assert spelled(428_658_688, "400M") == {"400M"}
    assert spelled(20_914_757_184, "20.91B") == {"20.91B"}
    assert precision("6.9B") == pytest.approx(0.1 / 6.9) and precision("400M") == pytest.approx(0.25)


@pytest.mark.parametrize("name", published.names())
def test_counts_are_those_of_the_publisher(name: str) -> None:
    model, found = published.published_model(name), sizes(built(name))
    total, active = as_stated(model, found)
    stated = [(total, model.total)] + ([(active, model.active)] if model.active else [])
    for count, text in stated:
        assert text in spelled(count, text), f"{count:,} is not {text}"
        assert abs(count / figure(text) - 1) <= max(0.01, precision(text)), text
        if len(Decimal(text[:-1]).normalize().as_tuple().digits) > 2:
            assert count == pytest.approx(figure(text), rel=0.01)
    assert model.config_source and model.size_source and model.weights_source


@pytest.mark.parametrize("name", published.names())
def test_parameters_and_what_is_beside_them_are_the_checkpoint(name: str) -> None:
    model, found = published.published_model(name), sizes(built(name))
    held = found.total + sum(model.beside.values())
    # All digits of what the files hold, but for one model of which four are known.
    assert str(held) == model.weights or model.weights in spelled(held, model.weights)
    assert {*model.total_with, *model.active_with} <= set(model.beside)
    assert all(isinstance(count, int) and count > 0 for count in model.beside.values())


@pytest.mark.parametrize(
    "name", [n for n in published.names() if BIASES in published.published_model(n).beside]
)
def test_correction_biases_are_the_buffers_that_are_stored(name: str) -> None:
    stored = built(name).state_dict()
    biases = [values.numel() for key, values in built(name).named_buffers() if key in stored]
    assert sum(biases) == published.published_model(name).beside[BIASES]


@pytest.mark.parametrize(
    ("name", "layer", "copies"),
    [
        ("qwen3-next-80b-a3b", -1, False),
        ("qwen3.5-35b-a3b", -1, False),
        ("qwen3.5-397b-a17b", -1, False),
        ("glm-4.7-flash", -1, True),
        ("glm-5", -1, False),
        ("deepseek-v3.2", -1, True),
        ("k-exaone-236b-a23b", 0, False),
    ],
)
def test_multi_token_prediction_is_one_more_layer(name: str, layer: int, copies: bool) -> None:
    # Beside the layer: what joins a hidden state and a token's embedding, norms of both and of the result,
    # and in some checkpoints copies of embedding and head. K-EXAONE's is a dense layer.
    causal_lm, hidden = built(name), built(name).config.hidden_size
    like = sum(values.numel() for values in causal_lm.model.layers[layer].state_dict().values())
    count = like + 2 * hidden * hidden + 3 * hidden + 2 * copies * sizes(causal_lm).embedding
    assert count == published.published_model(name).beside[MTP]


@pytest.mark.parametrize(
    ("name", "model_type", "text", "vision"),
    [
        ("qwen3.5-35b-a3b", "qwen3_5_moe", {}, {"out_hidden_size": 2048}),
        ("qwen3.5-397b-a17b", "qwen3_5_moe", {}, {"out_hidden_size": 4096}),
        *(
            (name, "llama4", {}, {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096})
            for name in ("llama-4-scout", "llama-4-maverick")
        ),
        (
            "mistral-small-4-119b",
            "mistral3",
            {"model_type": "mistral4"},
            {
                "model_type": "pixtral",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
        ),
    ],
)
def test_vision_is_what_its_class_has(
    name: str, model_type: str, text: dict[str, Any], vision: dict[str, Any]
) -> None:
    # One layer and few experts: of this model only the vision part is counted. Values of its config that are
    # not given are the defaults of transformers.
    text = {"num_hidden_layers": 1, "num_experts": 2, "num_local_experts": 2, **text}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    seen = [
        values.numel()
        for key, values in whole.named_parameters()
        if "language_model" not in key and not key.startswith("lm_head")
    ]
    assert sum(seen) == published.published_model(name).beside[VISION]


def test_scales_are_one_for_a_block_or_two_for_a_matrix() -> None:
    # DeepSeek-V3.2: one for each block of 128 x 128 of its linear layers, also in the layer for multi-token
    # prediction, and none for embedding, head, routers and the weights of the indexers' heads.
    causal_lm, scales = built("deepseek-v3.2"), 0
    plain = ("embed_tokens", "lm_head", "gate.weight", "weights_proj")
    layers = [*range(61), 60]
    for name, values in causal_lm.named_parameters():
        if values.dim() > 1 and not any(part in name for part in plain):
            rows, columns = values.shape[-2:]
            # Gate and up projection lie in one matrix here, and in two in the checkpoint.
            blocks = -(-rows // 128) * -(-columns // 128)
            scales += blocks * values.shape[:-2].numel() * layers.count(int(name.split(".")[2]))
    assert scales == published.published_model("deepseek-v3.2").beside["scales of quantized weights"]
    # Mistral Small 4: one of the weight and one of what enters it, for two matrices of each of 128 experts
    # and for eight of attention and shared expert, in each of 36 layers.
    record = published.published_model("mistral-small-4-119b")
    assert record.beside["scales of quantized weights"] == 36 * 2 * (2 * 128 + 8)


def test_stacked_experts_are_counted_and_convolutions_are_not() -> None:
    found = sizes(built("qwen3-next-80b-a3b"))
    assert (found.experts, found.top_k, found.sparse) == (512, 10, tuple(range(48)))
    assert found.routed == 48 * 512 * 3 * 2048 * 512
    assert not found.tied and found.embedding == 151936 * 2048
    assert found.active(False) == found.active() - found.embedding
    # Biases of experts belong to them; a tied embedding is always met.
    biased = sizes(built("gpt-oss-20b"))
    assert biased.routed == 24 * 32 * (3 * 2880 * 2880 + 3 * 2880)
    assert sizes(built("lfm2-8b-a1b")).active(False) == sizes(built("lfm2-8b-a1b")).active()
    assert sizes(built("jamba-v0.1")).sparse == tuple(range(1, 32, 2))


def test_a_network_without_stacked_experts_has_no_such_sizes() -> None:
    with pytest.raises(ValueError, match="stacked experts"):
        sizes(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 3, groups=2)))


def test_a_type_that_the_automatic_classes_do_not_list_is_built() -> None:
    assert type(built("mistral-small-4-119b")).__name__ == "Mistral4ForCausalLM"
