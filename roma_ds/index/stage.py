"""The index stage: neighbours of all training samples, each rank its share of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.errors import UserError
from roma_ds.index.neighbourhood import NeighbourFinder, Neighbourhood, prompt_groups
from roma_ds.storage.atomic import make_folder, write_npy

OUTPUTS = ["neighbours.npy", "inner_products.npy"]


def check_successful(run: RunConfig, successful: NDArray[np.bool_]) -> None:
    """Raises UserError when S is empty or smaller than k."""
    size = int(successful.sum())
    if size == 0:
        raise UserError(
            f"none of the {len(successful)} training samples is answered right: there are no neighbours",
            "look at the prompts with `roma-ds check`, or use a base model that can answer some of them",
        )
    if run.roma.epsilon is None and run.roma.neighbours > size:
        raise UserError(
            f"roma.neighbours is {run.roma.neighbours}, but only {size} training samples are answered right",
            f"set roma.neighbours to {size} or less, or add training samples",
        )


def build_neighbours(
    world: World,
    run: RunConfig,
    samples: Sequence[Sample],
    embeddings: NDArray[np.float32],
    successful: NDArray[np.bool_],
    least: float | None,
    folder: Path,
) -> dict[str, Any]:
    """Write `neighbours.npy` (int64 [samples, k], -1 where absent) and `inner_products.npy` (float64).

    embeddings: [samples, dim], unit length; successful: bool [samples], membership in S; least: smallest
    inner product in an epsilon-ball, None for k-NN. A collective. Returns facts for the stage's record.
    """
    with agreement(world):
        check_successful(run, successful)
        groups = prompt_groups([sample.prompt for sample in samples])
        finder = NeighbourFinder(embeddings, successful, groups, run.index.backend)
        rows = world.share(len(samples))
        if least is None:
            part = finder.nearest(rows, run.roma.neighbours)
        else:
            part = finder.within(rows, least, run.index.max_neighbours)
    gathered = world.gather_to_first(part)
    facts: dict[str, Any] = {}
    with agreement(world):
        if gathered is not None:
            whole = _interleave(gathered, len(samples))
            make_folder(folder)
            write_npy(folder / "neighbours.npy", whole.ids)
            write_npy(folder / "inner_products.npy", whole.inner_products)
            facts = {
                "successful": int(successful.sum()),
                "empty_neighbourhoods": whole.empty,
                "capped_neighbourhoods": whole.capped,
                "neighbours_mean": float(whole.present.sum(axis=1).mean()),
            }
    shared: dict[str, Any] = world.from_first(facts)
    return shared


def _interleave(parts: Sequence[Neighbourhood], total: int) -> Neighbourhood:
    width = parts[0].ids.shape[1]
    ids = np.full((total, width), -1, np.int64)
    products = np.zeros((total, width), np.float64)
    for rank, part in enumerate(parts):
        ids[rank :: len(parts)] = part.ids
        products[rank :: len(parts)] = part.inner_products
    return Neighbourhood(ids, products, sum(part.capped for part in parts))
