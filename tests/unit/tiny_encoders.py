"""Text encoders small enough to be made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from roma_ds.config import EmbedConfig
from roma_ds.embed.encoder import Encoder, load_encoder

WORDS = 60
POSITIONS = 24
LIMIT = 16
"""Tokens of a text that the encoders here read, the first and the last of which are special."""


def write_plain(folder: Path) -> Path:
    """A BERT without modules: as people train it with transformers alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(WORDS))]
    tokens = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, "[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=LIMIT, **special).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(names), max_position_embeddings=POSITIONS, initializer_range=0.5, **sizes
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write_whole(plain: Path) -> Path:
    """The same, saved by sentence-transformers beside it."""
    from sentence_transformers import SentenceTransformer

    folder = plain.parent / "whole"
    prompts = {"query": "w1 w2 ", "document": ""}
    SentenceTransformer(str(plain), device="cpu", prompts=prompts).save(str(folder))
    return folder


def loaded(folder: Path, **keys: Any) -> Encoder:
    return load_encoder(EmbedConfig(model=str(folder), **keys), torch.device("cpu"))


def text(count: int, *, last: str = "w0") -> str:
    return " ".join([*(f"w{place % 7}" for place in range(count - 1)), last])
