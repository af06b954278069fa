"""Neighbour weights W (equation 6) and the point that they pull a sample to.

Shapes: n samples, k neighbours (padded), M layers, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_weights(similarities: NDArray[np.floating], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """W: similarities divided by their row sum; absent neighbours and empty rows are 0. All [n, k]."""
    values = np.where(present, similarities, 0.0).astype(np.float64)
    # Far neighbours under a small sigma all underflow to 0; equal weights keep the rows summing to 1.
    flat = present.any(axis=1) & (values.sum(axis=1) <= 0.0)
    values[flat] = present[flat]
    sums = values.sum(axis=1, keepdims=True)
    weights: NDArray[np.float64] = np.divide(values, sums, out=np.zeros_like(values), where=sums > 0)
    return weights


def pull_targets(
    weights: NDArray[np.floating], neighbour_routing: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """rbar [n, M, E] and the spread of the neighbours around it, [n, M], for weights [n, k].

    neighbour_routing: [n, k, M, E]. As rows of W sum to 1, sum_j W_ij |r_i - r_j|^2 equals
    |r_i - rbar_i|^2 + spread_i, layer by layer; rows without neighbours give zeros.
    """
    routing = np.asarray(neighbour_routing, np.float64)
    mean = np.einsum("nk,nkme->nme", weights, routing)
    spread = np.einsum("nk,nkme->nm", weights, (routing - mean[:, None]) ** 2)
    return mean.astype(np.float32), spread.astype(np.float32)
