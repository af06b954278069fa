"""The section `embed` of a run's YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from roma_ds.config.constraints import Count, Text

EmbeddedText = Literal[
    "question", "question_choices", "passage_question", "passage_question_choices", "prompt"
]


@dataclass(frozen=True)
class EmbedConfig:
    """The frozen text-embedding model E that says which samples are alike."""

    model: Text = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or hub id of a sentence-transformers model; `demo` is the packaged MiniLM."""
    text: EmbeddedText = "question"
    """What of a sample is embedded. The passage, where a row has one, and the options belong to it where many
    samples ask the same question of different passages or options."""
    batch_size: Count = 64
    """Texts embedded at once."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type in which the encoder computes; null takes that of its weights. Vectors are float32 either way."""
    prompt: Text | None = None
    """Name of one of the encoder's prompts, put before each text; null takes the encoder's default."""
    max_tokens: Count | None = None
    """Tokens that are read of a text, from its beginning; null takes the encoder's own limit."""
    trust_remote_code: bool = False
    """Run code that comes with the encoder."""
