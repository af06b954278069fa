"""The variants in which routers are trained, and what each changes against RoMA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.baselines.neighbours import random_neighbours, shuffled_rows, shuffled_weights
from roma_ds.baselines.penalties import entropy_penalty, l1_penalty, l2_penalty
from roma_ds.config import RunConfig
from roma_ds.index import Neighbourhood

Neighbours = Callable[[Neighbourhood, NDArray[np.bool_], NDArray[np.int64], int], Neighbourhood]
Pool = Literal["successful", "all", "wrong"]


@dataclass(frozen=True)
class TrainedVariant:
    """A way to train the routers; everything that it does not name is as in RoMA."""

    name: str
    description: str
    lambda_: float | None = None
    """Weight of the manifold term, None for the run's own."""
    neighbours: Neighbours | None = None
    """Makes its neighbours from (those of RoMA, S, prompt groups, seed); None takes those of RoMA."""
    pool: Pool = "successful"
    """Who may be a neighbour: the samples that the pretrained model answers right, all, or the others."""
    penalty: Callable[[torch.Tensor], torch.Tensor] | None = None
    """In place of the manifold term, with the same weight: r [B, M, E] -> [B]."""
    layers: str | None = None
    """As roma.layers, None for the run's own."""
    refresh: Literal["never", "epoch"] | None = None
    """As roma.refresh, None for the run's own."""
    oracle: bool = False
    """Pull each sample to routing weights found for it by descent on the loss of its own answer."""

    def config(self, run: RunConfig) -> RunConfig:
        """The run config under which this variant trains."""
        roma = run.roma
        return replace(
            run,
            roma=replace(
                roma,
                lambda_=roma.lambda_ if self.lambda_ is None else self.lambda_,
                layers=roma.layers if self.layers is None else self.layers,
                refresh=roma.refresh if self.refresh is None else self.refresh,
            ),
        )


TRAINED: dict[str, TrainedVariant] = {
    variant.name: variant
    for variant in (
        TrainedVariant("roma", "routing weights pulled to those of successful neighbours"),
        TrainedVariant("router_tuning", "task loss alone, lambda 0", lambda_=0.0),
        TrainedVariant(
            "random_neighbours", "neighbours drawn at random from S", neighbours=random_neighbours
        ),
        TrainedVariant("roma_refreshed", "RoMA whose S and routing weights follow training", refresh="epoch"),
        TrainedVariant(
            "shuffled_weights",
            "similarities dealt anew among a sample's neighbours",
            neighbours=shuffled_weights,
        ),
        TrainedVariant(
            "shuffled_rows", "each sample has the neighbours of another one", neighbours=shuffled_rows
        ),
        TrainedVariant("no_success_filter", "neighbours from all samples", pool="all"),
        TrainedVariant("wrong_only", "neighbours from the samples answered wrong", pool="wrong"),
        TrainedVariant("all_layers", "routers of every MoE layer", layers="all"),
        TrainedVariant("l1", "L1 of the router's centred logits", penalty=l1_penalty),
        TrainedVariant("l2", "L2 of the router's centred logits", penalty=l2_penalty),
        TrainedVariant("entropy", "entropy of the routing weights", penalty=entropy_penalty),
        TrainedVariant("oracle_tuning", "pulled to oracle routing of the training samples", oracle=True),
    )
}
