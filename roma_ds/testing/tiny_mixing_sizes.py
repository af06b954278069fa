"""Tiny sizes of types with latent, indexed or compressed attention, or with layers that carry a state."""

from __future__ import annotations

from typing import Any

from roma_ds.testing.tiny_parts import (
    SHARED_WIDTH,
    WINDOW,
    Asked,
    by_turns,
    dense_first,
    granite_factors,
    groups,
)


def latent_sizes(asked: Asked) -> dict[str, dict[str, Any]]:
    """Types whose keys and values come from a narrow state, many of them with an indexer that picks keys."""
    layers, experts = asked.layers, asked.experts
    narrow = {
        "n_routed_experts": experts,
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": asked.hidden // 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    }
    latent = narrow | {"n_shared_experts": 1}
    # With few index heads scores of zero tie in a model so small, and the length of a text would choose.
    indexed = {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 16}
    sparse = {"mlp_layer_types": dense_first(layers)}
    reused = {"indexer_types": ["full", *by_turns(layers - 1, "full", "shared")]}
    streams = {"hc_mult": 3, "swiglu_limit": 0.5}
    return {
        "axk1": latent | sparse | groups(),
        "axk2": latent | sparse | groups() | indexed | {"gated_norm_rank": 6},
        "deepseek_v32": latent | sparse | groups() | indexed,
        "deepseek_v4": streams
        | indexed
        | {
            "n_routed_experts": experts,
            "num_key_value_heads": 1,
            "q_lora_rank": 12,
            "head_dim": asked.hidden // 4 + 4,
            "partial_rotary_factor": 0.5,
            "routed_scaling_factor": 1.7,
            "layer_types": by_turns(
                layers, "sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"
            ),
            "mlp_layer_types": ["hash_moe", "hash_moe", *["moe"] * (layers - 2)],
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            # Of entries that stand for two tokens each.
            "index_topk": 3,
            "hc_sinkhorn_iters": 5,
            "sliding_window": WINDOW,
            "o_groups": 2,
            "o_lora_rank": 6,
        },
        "dots3_note_text": latent
        | sparse
        | groups()
        | indexed
        | {
            "layer_types": by_turns(layers, "sliding_attention", "indexed_attention"),
            "head_dim": asked.hidden // 4 + 4,
            "sliding_window": WINDOW,
            "shared_experts_intermediate_size": SHARED_WIDTH,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 10,
            "swa_kv_lora_rank": 14,
            "swa_head_dim": 10,
            "swa_qk_nope_head_dim": 6,
            "swa_v_head_dim": 5,
        },
        "glm4_moe_lite": latent | sparse | groups() | {"head_dim": 4},
        "glm_moe_dsa": latent | sparse | groups() | indexed | reused,
        "hy_v4": latent | sparse | groups() | indexed | reused | streams,
        "longcat_flash": narrow
        | {
            # Two attentions a layer, and each counts as one.
            "num_hidden_layers": 2 * layers,
            "head_dim": 4,
            "zero_expert_num": 3,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 1.7,
        },
        "mistral4": latent
        | groups()
        | {
            "first_k_dense_replace": 1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 64.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    }


def stateful_sizes(asked: Asked) -> dict[str, dict[str, Any]]:
    """Types with convolutions, linear attention or state-space layers, alone or beside attention."""
    layers, experts = asked.layers, asked.experts
    linear = {"num_key_value_heads": 2, "layer_types": by_turns(layers, "linear_attention", "full_attention")}
    sparse = {"mlp_layer_types": dense_first(layers)}
    delta = {
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 10,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "shared_expert_intermediate_size": SHARED_WIDTH,
    }
    latent = {
        "n_shared_experts": 1,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": asked.hidden // 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    }
    local = {"num_local_experts": experts, "num_key_value_heads": 2}
    relative = {
        # More rows than there are words, as in checkpoints whose tables are padded.
        "vocab_size": asked.vocabulary + 5,
        "unpadded_vocab_size": asked.vocabulary,
        "n_routed_experts": experts,
        "num_key_value_heads": 2,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 12,
        "sliding_window_size": WINDOW,
        "layer_types": by_turns(layers, "hybrid_sliding", "hybrid"),
        "conv_kernel_size": 3,
        "d_rel": 6,
        "rel_extent": 8,
        "log_scaling_n_floor": 4,
        "log_scaling_alpha": 0.3,
        "route_scale": 1.7,
    }
    return {
        "bailing_hybrid": latent
        | linear
        | groups()
        | {
            "num_local_experts": experts,
            "num_key_value_heads": 4,
            "head_dim": 12,
            "short_conv_kernel_size": 3,
            "first_k_dense_replace": 1,
        },
        "granitemoehybrid": local
        | linear
        | granite_factors()
        | {
            "shared_intermediate_size": SHARED_WIDTH,
            "mamba_n_heads": 4,
            "mamba_n_groups": 2,
            "mamba_d_state": 6,
            "mamba_d_conv": 3,
            "mamba_chunk_size": 4,
        },
        "inkling_text": relative | sparse | {"n_shared_experts": 2, "logits_mup_width_multiplier": 2.0},
        "inkling2_text": relative
        | {
            "n_layers_per_attn_res_block": 2,
            "qk_l2_clip_threshold": 1.5,
            "rel_l2_clip_threshold": 0.5,
            "mlp_gate_softcap": 0.5,
            "mlp_up_softcap": 0.7,
            "final_logit_softcapping": 2.0,
        },
        "jamba": {
            "num_key_value_heads": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": (layers - 1) % 2,
            "attn_layer_period": 3,
            "attn_layer_offset": (layers - 1) % 3,
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
            "mamba_dt_rank": 3,
        },
        "kimi_linear": latent
        | linear
        | sparse
        | groups()
        | {
            "num_local_experts": experts,
            "num_key_value_heads": 4,
            "linear_head_dim": 12,
            "linear_num_heads": 3,
            "linear_conv_kernel_dim": 3,
        },
        "lfm2_moe": {
            "num_key_value_heads": 2,
            "layer_types": by_turns(layers, "conv", "full_attention"),
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.7,
        },
        "minimax": local
        | linear
        | {
            "block_size": 4,
            "router_jitter_noise": 0.1,
            "full_attn_alpha_factor": 1.3,
            "full_attn_beta_factor": 0.7,
            "linear_attn_alpha_factor": 1.2,
            "linear_attn_beta_factor": 0.8,
            "mlp_alpha_factor": 1.1,
            "mlp_beta_factor": 0.9,
        },
        "nemotron_h": groups()
        | {
            "layers_block_type": by_turns(layers, "mlp", "full_attention", "linear_attention", "moe"),
            "num_key_value_heads": 2,
            "ssm_state_size": 6,
            "mamba_num_heads": 4,
            "mamba_head_dim": 10,
            "n_groups": 2,
            "conv_kernel": 3,
            "chunk_size": 4,
            "n_routed_experts": experts,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": SHARED_WIDTH,
            "moe_latent_size": 16,
        },
        "qwen3_5_moe_text": linear | delta,
        "qwen3_next": linear | delta | {"mlp_only_layers": [0]},
        "qwen4_exp_text": linear
        | delta
        | {
            "hc_count": 3,
            "hc_lowrank": 6,
            # One-indexed, and of linear layers.
            "ple_layer_ids": [layers - 1],
            "ple_embed_dim": 12,
            "ple_conv_kernel_size": 3,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 20,
            "make_ngram_vocab_size_divisible_by": 4,
            "split_ngram_parts": 1,
            "indexer_n_heads": 16,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
        "zaya": {
            "num_key_value_heads": 2,
            "num_experts_per_tok": 1,
            "layer_types": by_turns(layers, "hybrid_sliding", "hybrid"),
            "sliding_window": WINDOW,
            "head_dim": asked.hidden // 4 + 4,
            "router_hidden_size": 20,
        },
    }
