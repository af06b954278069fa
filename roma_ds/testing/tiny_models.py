"""Tiny random checkpoints with a word-level tokenizer, saved in the layout of their family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def save_tiny(
    folder: Path,
    model_type: str = "olmoe",
    layers: int = 4,
    experts: int = 8,
    hidden: int = 32,
    seed: int = 0,
    dtype: str = "float32",
    shard_size: str = "5GB",
) -> Path:
    """Save a random model of `model_type` (a transformers config name) and a tokenizer; returns `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = save_tokenizer(folder)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden,
        moe_intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        num_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        # Larger routers than the usual initialisation: routing far from uniform tests more.
        if name.endswith("gate.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder
