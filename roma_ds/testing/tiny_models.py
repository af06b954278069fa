"""Tiny random checkpoints with a word-level tokenizer, saved in the layout of their family."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ("Question", "Answer", ":", ".", "?", "A", "B", "C", "D", *(f"w{number}" for number in range(180)))

ROUTERS = ("gate.weight", "router.weight")


def _own_sizes(model_type: str, experts: int, hidden: int) -> dict[str, Any]:
    """What a family names otherwise, or has beside what all have; small, and none of it switched off."""
    group_limited = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.7}
    latent = {
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": hidden // 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "head_dim": 4,
    }
    leading = {"n_routed_experts": experts, "n_shared_experts": 1, "first_k_dense_replace": 1}
    local = {"num_local_experts": experts, "num_key_value_heads": 2}
    own: dict[str, dict[str, Any]] = {
        "qwen2_moe": {"shared_expert_intermediate_size": hidden, "mlp_only_layers": [0]},
        "mixtral": local,
        "granitemoe": local
        | {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
        },
        "phimoe": local | {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.1},
        "deepseek": leading | {"num_experts_per_tok": 3},
        "deepseek_v2": leading | latent | group_limited | {"topk_method": "group_limited_greedy"},
        "deepseek_v3": leading | latent | group_limited,
        "glm4_moe": leading | group_limited | {"use_qk_norm": True, "num_key_value_heads": 2},
        "ernie4_5_moe": {
            "moe_num_experts": experts,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "num_key_value_heads": 2,
            "moe_layer_start_index": 1,
        },
        "gpt_oss": local | {"sliding_window": 6},
        "flex_olmo": {"num_key_value_heads": 2},
    }
    return own.get(model_type, {})


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    """Save a tokenizer of whole words split at white space; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", "<eos>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    ).save_pretrained(folder)
    return len(vocabulary)


def tiny_config(
    model_type: str, vocabulary: int, layers: int = 4, experts: int = 8, hidden: int = 32, **more: Any
) -> Any:
    """A small transformers config of `model_type`; more: values that go before those chosen here."""
    from transformers import AutoConfig

    from roma_ds.families.own_models import register_own_models

    register_own_models()
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "moe_intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": hidden // 4,
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **sizes | _own_sizes(model_type, experts, hidden) | more)


def save_tiny(
    folder: Path,
    model_type: str = "olmoe",
    layers: int = 4,
    experts: int = 8,
    hidden: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    shard_size: str = "5GB",
    **more: Any,
) -> Path:
    """Save a random model of `model_type` (a transformers config name) and a tokenizer; returns `folder`.

    more: config values that go before those of `tiny_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type, save_tokenizer(folder), layers, experts, hidden, **more)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        # Larger routers than the usual initialisation: routing far from uniform tests more.
        if name.endswith(ROUTERS):
            torch.nn.init.normal_(parameter, std=0.5)
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        # Zero at first, and then nothing would show whether they are read.
        if name.endswith(("_bias", ".bias", ".sinks")):
            torch.nn.init.normal_(values, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def save_with_vocabulary(folder: Path, tokenizer_file: Path, dtype: str = "float32") -> Path:
    """Save a random OLMoE, small but for its 50,304 tokens, whose logits are far from even; returns `folder`.

    tokenizer_file: that of OLMoE, as gzipped JSON of the library `tokenizers`.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(gzip.decompress(tokenizer_file.read_bytes()).decode()),
        pad_token="<|padding|>",
        eos_token="<|endoftext|>",
    )
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = tiny_config("olmoe", 50_304, layers=3, hidden=64, max_position_embeddings=2048, **special)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    torch.nn.init.normal_(model.lm_head.weight, std=0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
