"""Which sequences of a model may lie in one batch of the library's own forward pass.

Measured on tiny random checkpoints of every Mixture-of-Experts type of transformers 5.23, each sequence
against itself alone. Padding on the right changes nothing for a real token but in MIXING. Padding on the
left, which generation needs, changes what UNPADDED_LAYERS give, as their blocks of keys are counted from the
start of a row, and what UNPADDED_TYPES write, as the library takes a new token for padding.
"""

from __future__ import annotations

from typing import Any, Literal

Batching = Literal["padded", "equal", "alone"]
"""Sequences of any lengths, padded; of one length; or one at a time."""
UNPADDED_LAYERS = {
    "chunked_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
}
"""Types of layers."""
UNPADDED_TYPES = {"minimax"}
"""Model types."""
MIXING = {"doge": "its router mixes the tokens of a batch"}
"""Model types whose results depend on what else lies in the batch, with the reason."""


def scoring_batches(config: Any) -> Batching:
    """Of sequences that are read at once, padded on the right."""
    return "alone" if mixing_reason(config) else "padded"


def writing_batches(config: Any) -> Batching:
    """Of prompts that are gone on with, padded on the left."""
    text = _text(config)
    if mixing_reason(config):
        return "alone"
    layers = set(getattr(text, "layer_types", None) or ())
    unpadded = text.model_type in UNPADDED_TYPES or UNPADDED_LAYERS & layers
    return "equal" if unpadded else "padded"


def mixing_reason(config: Any) -> str | None:
    """Why every sequence is run alone; None where none has to be."""
    text = _text(config)
    sparse = getattr(text, "is_moe", True)
    return MIXING.get(getattr(text, "model_type", "")) if sparse else None


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
