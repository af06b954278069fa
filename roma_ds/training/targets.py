"""What the manifold term pulls each sample to: the weighted routing of its neighbours.

Shapes: B samples, k neighbours, M chosen layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Targets(Protocol):
    """What a training asks for its pull, and tells what it saw."""

    @property
    def successful(self) -> int:
        """Size of S now."""

    @property
    def epoch(self) -> int:
        """How often S and its routing weights were brought up to date."""

    def ask(self, rows: Sequence[int], device: torch.device) -> Callable[[], BatchTargets]:
        """Begin to find the targets of samples `rows`; what is returned waits for them.

        Every rank asks for each of its micro-batches, and waits before it asks for the next.
        """

    def observe(self, rows: Sequence[int], right: Sequence[bool], routing: torch.Tensor) -> None:
        """What one micro-batch showed: outcomes, and live routing weights float32 [B, M, E]."""

    def observed(self, step: int) -> None:
        """All micro-batches of step `step`, counted from 1, have shown what they show. A collective."""

    def after_step(self, done: int) -> None:
        """`done` optimizer steps are behind us, and what was observed in them counts. A collective."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """What a resumed training needs, on rank 0. A collective."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave, on every rank."""

    def close(self) -> None:
        """Training is over. A collective."""


def pulled(
    neighbours: Neighbourhood,
    weights: NDArray[np.float64],
    values: NDArray[np.floating],
    device: torch.device,
) -> BatchTargets:
    """Targets from neighbours [B, k], their weights [B, k] and routing weights [B, k, M, E]."""
    mean, spread = pull_targets(weights, values)
    present = neighbours.present.any(axis=1)
    return BatchTargets(*(torch.from_numpy(item).to(device) for item in (mean, spread, present)))


class ManifoldTargets:
    """Neighbours and their routing weights as the pretrained model has them, from first step to last.

    The routing weights may lie in a memory-mapped file of all samples.
    """

    epoch = 0

    def __init__(
        self,
        routing: NDArray[np.floating],
        columns: Sequence[int],
        neighbours: Neighbourhood,
        sigma: float,
        successful: int = 0,
    ) -> None:
        """routing: [samples, MoE layers, experts]; columns: which of its layers are trained."""
        self.routing = routing
        self.columns = list(columns)
        self.neighbours = neighbours
        self.weights = row_weights(similarity(neighbours.inner_products, sigma), neighbours.present)
        self.successful = successful

    def of(self, rows: Sequence[int], device: torch.device) -> BatchTargets:
        """Targets of samples `rows`."""
        chosen = list(rows)
        ids = np.maximum(self.neighbours.ids[chosen], 0)
        values = self.routing[ids.reshape(-1)][:, self.columns].reshape(*ids.shape, len(self.columns), -1)
        found = Neighbourhood(self.neighbours.ids[chosen], self.neighbours.inner_products[chosen])
        return pulled(found, self.weights[chosen], values, device)

    def ask(self, rows: Sequence[int], device: torch.device) -> Callable[[], BatchTargets]:
        """They are there already."""
        found = self.of(rows, device)
        return lambda: found

    def observe(self, rows: Sequence[int], right: Sequence[bool], routing: torch.Tensor) -> None:
        """Nothing follows from it."""

    def observed(self, step: int) -> None:
        """Nothing follows from it."""

    def after_step(self, done: int) -> None:
        """Nothing is due."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """Nothing changes."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing to go on from."""

    def close(self) -> None:
        """Nothing is held."""
