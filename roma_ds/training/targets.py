"""What the manifold term pulls each sample to: the weighted routing of its neighbours.

Shapes: B samples, k neighbours, M chosen layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.index import Neighbourhood
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.weights import pull_targets, row_weights


@dataclass(frozen=True)
class BatchTargets:
    """Targets of one micro-batch, on the model's device."""

    mean: torch.Tensor
    """rbar, float32 [B, M, E]"""
    spread: torch.Tensor
    """float32 [B, M]"""
    present: torch.Tensor
    """bool [B], False where a sample has no neighbour"""


class ManifoldTargets:
    """Looks up neighbours' routing weights, which may lie in a memory-mapped file of all samples."""

    def __init__(
        self, routing: NDArray[np.floating], columns: Sequence[int], neighbours: Neighbourhood, sigma: float
    ) -> None:
        """routing: [samples, MoE layers, experts]; columns: which of its layers are trained."""
        self.routing = routing
        self.columns = list(columns)
        self.neighbours = neighbours
        self.weights = row_weights(similarity(neighbours.inner_products, sigma), neighbours.present)

    def of(self, rows: Sequence[int], device: torch.device) -> BatchTargets:
        """Targets of samples `rows`."""
        chosen = list(rows)
        ids = np.maximum(self.neighbours.ids[chosen], 0)
        values = self.routing[ids.reshape(-1)][:, self.columns].reshape(*ids.shape, len(self.columns), -1)
        mean, spread = pull_targets(self.weights[chosen], values)
        present = self.neighbours.present[chosen].any(axis=1)
        return BatchTargets(
            torch.from_numpy(mean).to(device),
            torch.from_numpy(spread).to(device),
            torch.from_numpy(present).to(device),
        )
