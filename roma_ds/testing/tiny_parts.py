"""Values that tiny configs of several model types share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """The sizes that the caller of `tiny_config` chose."""

    vocabulary: int
    layers: int
    experts: int
    hidden: int

    @property
    def dense_width(self) -> int:
        """That of dense feed-forward parts: not the model's own, so that no two shapes are alike."""
        return self.hidden * 5 // 4

    @property
    def expert_width(self) -> int:
        """That of one expert."""
        return self.hidden * 3 // 4


WINDOW = 6
"""Tokens that a sliding window sees: fewer than a short question has."""

SHARED_WIDTH = 20
"""Of a shared expert, where its width is a value of its own."""


def by_turns(layers: int, *kinds: Any) -> list[Any]:
    """The kinds in turn, so that the last layer has the last kind; [layers]."""
    return [kinds[(layer - layers) % len(kinds)] for layer in range(layers)]


def dense_first(layers: int) -> list[str]:
    """One dense layer, then sparse ones."""
    return ["dense", *["sparse"] * (layers - 1)]


def groups() -> dict[str, Any]:
    """Experts chosen from two of four groups, and a factor on their weights."""
    return {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.7}


def granite_factors() -> dict[str, Any]:
    """The four factors of Granite, none of them 1."""
    return {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    }
