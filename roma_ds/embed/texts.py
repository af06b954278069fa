"""What of a sample the text-embedding model reads."""

from __future__ import annotations

from typing import get_args

from roma_ds.config.frozen_models import EmbeddedText
from roma_ds.data.sample import Sample

FORMS: tuple[EmbeddedText, ...] = get_args(EmbeddedText)
"""From the narrowest to all that the language model reads."""


def text_of(sample: Sample, form: EmbeddedText) -> str:
    """The text of a sample in one of `FORMS`; parts that a sample lacks are left out."""
    if form == "prompt":
        return sample.prompt
    parts = [sample.question]
    if form.startswith("passage") and sample.passage:
        parts.insert(0, sample.passage)
    if form.endswith("choices"):
        parts += sample.choices
    return " ".join(parts)
