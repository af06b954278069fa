"""What each model type's tiny config says beside the sizes that all have: nothing of a family switched off.

Types whose layers all attend by keys and values of their own are here; those with latent or indexed
attention, or with layers that carry a state along the sequence, are in `tiny_mixing_sizes`.
"""

from __future__ import annotations

from typing import Any

from roma_ds.testing.tiny_mixing_sizes import latent_sizes, stateful_sizes
from roma_ds.testing.tiny_parts import (
    SHARED_WIDTH,
    WINDOW,
    Asked,
    by_turns,
    dense_first,
    granite_factors,
    groups,
)

MOE_TYPES: tuple[str, ...] = (
    *("afmoe", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "dbrx"),
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "doge", "dots1", "dots3_note_text"),
    *("ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "gemma4_text", "glm4_moe", "glm4_moe_lite"),
    *("glm_moe_dsa", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
    *("hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling2_text", "inkling_text", "jamba", "jetmoe", "kimi_linear"),
    *("kolibri1", "laguna", "lfm2_moe", "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash"),
    *("minimax", "minimax_m2", "minimax_m3_vl_text", "mistral4", "mixtral", "nemotron_h", "olmoe", "phimoe"),
    *("qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text", "solar_open", "zaya"),
)
"""Every type of transformers 5.23 with routed experts and a causal language model, by name."""

FIRST_TYPES = frozenset(
    {
        *("deepseek", "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss"),
        *("granitemoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
    }
)
"""Types whose tiny checkpoints are to stay as they are, bit by bit: tests and measurements rest on them."""


def own_sizes(model_type: str, asked: Asked) -> dict[str, Any]:
    """What a family names otherwise, or has beside what all have; {} for a type that is not known here."""
    if model_type in FIRST_TYPES:
        return _first_sizes(asked).get(model_type, {})
    known = _attention_sizes(asked) | latent_sizes(asked) | stateful_sizes(asked)
    # Larger than the usual range: attention far from even, and experts that weigh in the logits.
    return {"initializer_range": 0.1} | known.get(model_type, {})


def _first_sizes(asked: Asked) -> dict[str, dict[str, Any]]:
    latent = {
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": asked.hidden // 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "head_dim": 4,
    }
    leading = {"n_routed_experts": asked.experts, "n_shared_experts": 1, "first_k_dense_replace": 1}
    local = {"num_local_experts": asked.experts, "num_key_value_heads": 2}
    return {
        "qwen2_moe": {"shared_expert_intermediate_size": asked.hidden, "mlp_only_layers": [0]},
        "mixtral": local,
        "granitemoe": local | granite_factors(),
        "phimoe": local | {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.1},
        "deepseek": leading | {"num_experts_per_tok": 3},
        "deepseek_v2": leading | latent | groups() | {"topk_method": "group_limited_greedy"},
        "deepseek_v3": leading | latent | groups(),
        "glm4_moe": leading | groups() | {"use_qk_norm": True, "num_key_value_heads": 2},
        "ernie4_5_moe": {
            "moe_num_experts": asked.experts,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "num_key_value_heads": 2,
            "moe_layer_start_index": 1,
        },
        "gpt_oss": local | {"sliding_window": 6},
        "flex_olmo": {"num_key_value_heads": 2},
    }


def _attention_sizes(asked: Asked) -> dict[str, dict[str, Any]]:
    layers, experts = asked.layers, asked.experts
    windows = {
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "layer_types": by_turns(layers, "sliding_attention", "full_attention"),
    }
    routed = {"n_routed_experts": experts, "num_key_value_heads": 2}
    local = {"num_local_experts": experts, "num_key_value_heads": 2}
    sparse = {"mlp_layer_types": dense_first(layers)}
    shared = {"shared_expert_intermediate_size": SHARED_WIDTH}
    return {
        "afmoe": windows
        | {"num_dense_layers": 1, "num_shared_experts": 1, "route_scale": 1.7, "mup_enabled": True},
        "aria_text": {"moe_num_experts": experts, "moe_topk": 2, "num_key_value_heads": 2},
        "beam": windows | sparse | groups() | {"final_logit_softcapping": 2.0},
        "cohere2_moe": windows
        | sparse
        | {"num_shared_experts": 1, "prefix_dense_intermediate_size": asked.dense_width, "logit_scale": 0.3},
        "dbrx": {
            # By its own name, which is read before the common one is.
            "d_model": asked.hidden,
            "attn_config": {"clip_qkv": 0.5, "kv_n_heads": 2, "rope_theta": 10_000.0},
            "ffn_config": {
                "ffn_hidden_size": asked.expert_width,
                "moe_num_experts": experts,
                "moe_top_k": 2,
                "moe_jitter_eps": 0.1,
                "moe_normalize_expert_weights": 2.0,
            },
        },
        "doge": {
            "is_moe": True,
            # Keys are products: the number of experts is a square.
            "num_experts": (int((experts - 1) ** 0.5) + 1) ** 2,
            "norm_topk_prob": True,
            "keep_window_size": WINDOW,
            "num_key_value_heads": 2,
        },
        "dots1": routed
        | windows
        | groups()
        | {"n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True},
        "exaone_moe": windows | sparse | groups(),
        "flint": windows | shared | {"mlp_only_layers": [0]},
        "gemma4_text": windows
        | {
            "enable_moe_block": True,
            "top_k_experts": 2,
            "attention_k_eq_v": True,
            "global_head_dim": 12,
            "num_global_key_value_heads": 1,
            # As in the published model with experts; those without share keys and have inputs by layer.
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 2.0,
        },
        "granitemoe_swa": local
        | windows
        | granite_factors()
        | {
            "shared_intermediate_size": SHARED_WIDTH,
            # A base of 0 stands for no rotary encoding.
            "layer_rope_theta": by_turns(layers, 10_000.0, 0.0),
        },
        "granitemoeshared": local | granite_factors() | {"shared_intermediate_size": SHARED_WIDTH},
        "hunyuan_v1_moe": {
            "num_experts_per_tok": by_turns(layers, 3, 2),
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0, "factor": 1.0},
        },
        "hy_v3": sparse | {"num_shared_experts": 1, "router_scaling_factor": 1.7, "num_key_value_heads": 2},
        "jetmoe": {"num_local_experts": experts, "num_key_value_heads": 2, "kv_channels": asked.hidden // 4},
        "kolibri1": windows | shared | {"num_local_experts": experts},
        "laguna": windows
        | sparse
        | shared
        | {
            "num_attention_heads_per_layer": by_turns(layers, 6, 4),
            "moe_routed_scaling_factor": 1.7,
            "moe_router_logit_softcapping": 0.0,
        },
        "llama4_text": {
            "num_local_experts": experts,
            "num_key_value_heads": 2,
            "moe_layers": list(range(1, layers)),
            "intermediate_size": asked.expert_width,
            "intermediate_size_mlp": asked.dense_width,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": by_turns(layers, 1, 0),
            "floor_scale": 4,
            "attn_scale": 0.3,
        },
        "mellum": windows | sparse | {"num_local_experts": experts},
        "mimo_v2_flash": windows | sparse | groups() | {"n_routed_experts": experts, "v_head_dim": 6},
        "minimax_m2": local | {"rotary_dim": 4, "router_jitter_noise": 0.1},
        "minimax_m3_vl_text": local
        | sparse
        | {
            "layer_types": by_turns(layers, "full_attention", "minimax_m3_sparse"),
            "dense_intermediate_size": asked.dense_width,
            "intermediate_size": asked.expert_width,
            "shared_intermediate_size": SHARED_WIDTH,
            "routed_scaling_factor": 1.7,
            "rotary_dim": 4,
            "partial_rotary_factor": 0.5,
            "swiglu_limit": 0.5,
            # As many as there are heads of keys.
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 3,
            "index_topk_blocks": 2,
        },
        "solar_open": routed | groups() | {"n_shared_experts": 1},
    }
