"""What training did to routing and language beside the tasks: expert load, chosen experts, perplexity.

Shapes: n samples, M MoE layers, E experts; routing weights at the token whose routing is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def chosen_experts(routing: Floats, top_k: int) -> NDArray[np.int64]:
    """int64 [n, M, k], the experts of largest weight, in no order."""
    found: NDArray[np.int64] = np.argpartition(-np.asarray(routing, np.float32), top_k - 1, axis=-1)[
        ..., :top_k
    ]
    return found


def load_entropy(routing: Floats, top_k: int) -> float:
    """Entropy of the experts' shares of all choices over log E, mean over layers: 1 is an even load."""
    count, layers, experts = routing.shape
    chosen = chosen_experts(routing, top_k)
    shares = np.stack(
        [
            np.bincount(chosen[:, layer].ravel(), minlength=experts) / (count * top_k)
            for layer in range(layers)
        ]
    )
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(-(shares * logs).sum(axis=1).mean() / np.log(experts))


def expert_overlap(routing: Floats, base: Floats, top_k: int) -> float:
    """Share of the chosen experts that the base model chooses too, mean over samples and layers."""
    ours, theirs = chosen_experts(routing, top_k), chosen_experts(base, top_k)
    return float((ours[..., :, None] == theirs[..., None, :]).any(axis=-1).mean())


def perplexity(loglikelihoods: Sequence[float] | Floats, tokens: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood per predicted token; loglikelihoods in nats, one a piece."""
    total = sum(tokens)
    if total <= 0 or len(tokens) != len(loglikelihoods):
        raise ValueError(f"{len(loglikelihoods)} pieces with {total} predicted tokens")
    return float(np.exp(-float(np.sum(loglikelihoods)) / total))
