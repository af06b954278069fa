"""What configs of a family may switch on or off, and models that no family describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import DEPTH, SEQUENCES, Reference, assert_as_reference, run, suffix_of
from safetensors import safe_open
from tiny_runs import model_config, stock_network
from transformers import AutoConfig

from roma_ds.checkpoint.span import Span, load_span
from roma_ds.errors import UserError
from roma_ds.families import detect, family_of
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.1, 1.2, 1.3, 1.4],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 16,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {"sliding_window": 4}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 3}),
    ("qwen3_moe", {"norm_topk_prob": True, "num_key_value_heads": 2}),
    ("phimoe", {"rope_parameters": LONGROPE}),
    ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "first_k_dense_replace": 2}),
    ("deepseek_v3", {"q_lora_rank": None, "norm_topk_prob": False, "first_k_dense_replace": 0}),
    ("ernie4_5_moe", {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "tie_word_embeddings": False}),
    ("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_interval": 2}),
    ("gpt_oss", {"sliding_window": 2}),
    ("granitemoe", {"tie_word_embeddings": True}),
    ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False, "num_dense_layers": 0}),
    ("hunyuan_v1_moe", {"moe_topk": 2, "num_key_value_heads": 4}),
    ("llama4_text", {"moe_layers": [1, 2], "num_experts_per_tok": 1}),
    ("glm_moe_dsa", {"indexer_types": ["full", "shared", "shared", "full"], "n_group": 1, "topk_group": 1}),
    ("mistral4", {"q_lora_rank": None, "norm_topk_prob": False, "first_k_dense_replace": 0}),
    ("nemotron_h", {"layers_block_type": ["moe", "linear_attention", "moe", "full_attention"]}),
    ("nemotron_h", {"layers_block_type": ["moe", "full_attention", "moe", "mlp"], "moe_latent_size": None}),
    ("gemma4_text", {"attention_k_eq_v": False, "tie_word_embeddings": False}),
    ("qwen3_next", {"norm_topk_prob": False, "mlp_only_layers": [3]}),
    ("jamba", {"expert_layer_period": 3, "expert_layer_offset": 0}),
    ("exaone_moe", {"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}),
]


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)
def test_variants_are_as_the_stock_model(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, model_type, **changes)
    batch = collate(SEQUENCES, "last3")
    whole = suffix_of(folder)
    whole.capture(2)
    output = run(whole, batch)
    reference = Reference(stock_network(model_config(folder)), SEQUENCES)
    assert_as_reference(output, batch, reference, "last3")
    suffix = run(suffix_of(folder, 2), replace(batch, entering=output.entering))
    torch.testing.assert_close(suffix.logits, output.logits, rtol=0, atol=1e-6)
    kept = [place for place, layer in enumerate(whole.layers) if layer >= 2]
    torch.testing.assert_close(suffix.routing, output.routing[:, kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_type", ["granitemoe", "ernie4_5_moe"])
def test_a_suffix_from_layer_0_on_takes_hidden_states(model_type: str, tmp_path: Path) -> None:
    """What the embedding is multiplied by is in them already."""
    folder, batch = save_tiny(tmp_path, model_type), collate(SEQUENCES, "last1")
    whole = suffix_of(folder)
    whole.capture(0)
    wanted = run(whole, batch)
    network = load_span(
        model_config(folder), Span(0, DEPTH, embedding=False, head=True), None, torch.device("cpu")
    )
    layout = detect(network)
    suffix = type(whole)(network, layout, layout.layers).attach()
    output = run(suffix, replace(batch, entering=wanted.entering))
    torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=1e-6)


def test_positions_that_depend_on_the_longest_sequence_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "phimoe", rope_parameters=LONGROPE)
    routed = suffix_of(folder)
    run(routed, collate([Encoded(0, tuple(range(5, 21)), (7,))], "last1"))
    with pytest.raises(UserError, match="from 16 tokens on, and a sequence has 17"):
        run(routed, collate([Encoded(0, tuple(range(5, 22)), (7,))], "last1"))


@pytest.mark.parametrize(("model_type", "scoring"), [("mellum", "softmax"), ("mimo_v2_flash", "sigmoid")])
def test_an_unknown_model_is_found_by_its_recorded_routers(
    model_type: str, scoring: str, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_key_value_heads": 2}
    sizes |= {"num_experts_per_tok": 2, "mlp_layer_types": ["sparse"] * DEPTH}
    folder = save_tiny(tmp_path, model_type, **sizes)
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config)
    assert (family.name, family.support, family.scoring) == (model_type, "experimental", scoring)
    assert f"{DEPTH} routers of class" in family.reason and "8 experts, top-2" in family.reason
    assert family_of(AutoConfig.from_pretrained(folder)) is family
    routed, batch = suffix_of(folder), collate(SEQUENCES, "last1")
    assert_as_reference(
        run(routed, batch), batch, Reference(stock_network(model_config(folder)), SEQUENCES), "last1"
    )
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for layer, weight in routed.routers().items():
            assert torch.equal(file.get_tensor(routed.layout.gate_key(layer)), weight)
    assert family.barrier("suffix") is None


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("cohere2_moe", {"logit_scale": 0.5}),
        ("minimax_m2", {}),
        ("granitemoeshared", {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "num_local_experts": 8}),
    ],
)
def test_what_a_model_does_to_embeddings_and_logits_is_done(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder, batch = save_tiny(tmp_path, model_type, **changes), collate(SEQUENCES, "last1")
    whole = suffix_of(folder)
    whole.capture(2)
    output = run(whole, batch)
    assert_as_reference(output, batch, Reference(stock_network(model_config(folder)), SEQUENCES), "last1")
    suffix = run(suffix_of(folder, 2), replace(batch, entering=output.entering))
    torch.testing.assert_close(suffix.logits, output.logits, rtol=0, atol=1e-6)
