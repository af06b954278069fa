"""Tiny random checkpoints with a word-level tokenizer, saved in the layout of their family."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.testing.tiny_parts import Asked
from roma_ds.testing.tiny_sizes import FIRST_TYPES, own_sizes
from roma_ds.testing.tiny_weights import enlarge

WORDS = ("Question", "Answer", ":", ".", "?", "A", "B", "C", "D", *(f"w{number}" for number in range(180)))


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
    from transformers import CONFIG_MAPPING, AutoConfig

    from roma_ds.families.own_models import register_own_models

    register_own_models()
    asked, first = Asked(vocabulary, layers, experts, hidden), model_type in FIRST_TYPES
    widths = {
        "intermediate_size": hidden if first else asked.dense_width,
        "moe_intermediate_size": hidden if first else asked.expert_width,
        "num_key_value_heads": 4,
        "head_dim": hidden // 4,
        "num_experts": experts,
        "num_experts_per_tok": 2,
    }
    if not first:
        # What a published config does not name, code is not to find in a tiny one either.
        widths = _named(CONFIG_MAPPING[model_type], widths)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **sizes | widths | own_sizes(model_type, asked) | more)


def _named(config_class: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that a config class has, under this name or as an alias of its own one."""
    return {
        name: size
        for name, size in sizes.items()
        if hasattr(config_class, name) or name in config_class.attribute_map
    }


def random_model(config: Any, dtype: Any = None) -> Any:
    """The causal language model of a config, as its library draws it."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    return causal_lm_class(type(config))._from_config(config, dtype=dtype)


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

    config = tiny_config(model_type, save_tokenizer(folder), layers, experts, hidden, **more)
    torch.manual_seed(seed)
    model = random_model(config, getattr(torch, dtype))
    enlarge(model, everything=model_type not in FIRST_TYPES)
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
