"""The variants that are trained, and what each changes against RoMA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roma_ds.baselines.random_neighbours import random_neighbours
from roma_ds.config import RunConfig
from roma_ds.index import Neighbourhood

Neighbours = Callable[[Neighbourhood, NDArray[np.bool_], NDArray[np.int64], int], Neighbourhood]


@dataclass(frozen=True)
class TrainedVariant:
    """A way to train the routers; everything that it does not name is as in RoMA."""

    name: str
    description: str
    lambda_: float | None = None
    """Weight of the manifold term, None for the run's own."""
    neighbours: Neighbours | None = None
    """Makes its neighbours from (those of RoMA, S, prompt groups, seed); None takes those of RoMA."""

    def config(self, run: RunConfig) -> RunConfig:
        """The run config under which this variant trains."""
        if self.lambda_ is None:
            return run
        return replace(run, roma=replace(run.roma, lambda_=self.lambda_))


TRAINED: dict[str, TrainedVariant] = {
    variant.name: variant
    for variant in (
        TrainedVariant("roma", "routing weights pulled to those of successful neighbours"),
        TrainedVariant("router_tuning", "task loss alone, lambda 0", lambda_=0.0),
        TrainedVariant(
            "random_neighbours", "neighbours drawn at random from S", neighbours=random_neighbours
        ),
    )
}
