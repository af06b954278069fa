"""How wide attention is, from a model config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AttentionWidths:
    """Numbers a token and layer, all heads together."""

    queries: int
    """Of queries."""
    keys: int
    """Of keys."""
    values: int
    """Of values."""
    pair: int
    """Operations of one query with one key: their product, and the value weighted by it."""


WITHOUT_PAIRS = ("linear_attention", "conv", "mlp", "moe")
"""Names in a config's `layer_types` of layers in which no query meets every key before it."""


def has_pairs(config: Any, layer: int) -> bool:
    """Whether the queries of a layer meet keys one by one."""
    kinds = getattr(config, "layer_types", None)
    return kinds is None or kinds[layer] not in WITHOUT_PAIRS


def attention_widths(config: Any) -> AttentionWidths:
    """The widths of a transformers config; with latent attention those of what the heads attend with.

    Where layers differ, those of the widest.
    """
    try:
        return _widths(config)
    except RuntimeError:
        # transformers refuses to give one value for all layers.
        return max(map(_widths, config.per_layer_config), key=lambda widths: widths.pair)


def _widths(config: Any) -> AttentionWidths:
    heads = int(config.num_attention_heads)
    if getattr(config, "kv_lora_rank", None):
        query = int(config.qk_nope_head_dim) + int(config.qk_rope_head_dim)
        value = int(config.v_head_dim)
        return AttentionWidths(heads * query, heads * query, heads * value, 2 * heads * (query + value))
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    return AttentionWidths(heads * width, shared * width, shared * width, 4 * heads * width)
