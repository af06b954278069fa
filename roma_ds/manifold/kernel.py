"""Similarity of task embeddings (equation 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError


def similarity(inner_products: NDArray[np.floating], sigma: float) -> NDArray[np.float64]:
    """exp(-d^2 / (2 sigma^2)) for unit vectors, whose squared distance d^2 is 2 - 2 <a, b>; any shape."""
    squared = np.maximum(2.0 - 2.0 * np.asarray(inner_products, np.float64), 0.0)
    return np.exp(-squared / (2.0 * sigma**2))


def least_inner_product(epsilon: float, sigma: float) -> float:
    """The inner product of unit vectors at which their similarity is `epsilon`."""
    return 1.0 + sigma**2 * float(np.log(epsilon))


def median_sigma(embeddings: NDArray[np.floating], seed: int, pairs: int = 20_000) -> float:
    """Median distance of `pairs` random pairs of rows (the median heuristic), without pairs at distance 0.

    embeddings: [samples, dim], L2-normalised. Raises UserError when no two rows differ.
    """
    rows = len(embeddings)
    if rows < 2 or not (embeddings != embeddings[0]).any():
        raise UserError(
            "roma.sigma is median, but no two training samples have different embeddings",
            "set roma.sigma to a number, or add training samples",
        )
    generator = np.random.default_rng([seed, 5])
    first = generator.integers(0, rows, pairs)
    second = (first + generator.integers(1, rows, pairs)) % rows
    distances = np.linalg.norm(embeddings[first] - embeddings[second], axis=1)
    # Copies of a text tell nothing about the width; with many of them the median would be 0.
    apart = distances[distances > 0]
    return float(np.median(apart if apart.size else np.linalg.norm(embeddings - embeddings[0], axis=1).max()))
