"""The index stage: neighbours of all training samples, each rank its share of the queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.comm import Transport, World, agreement, open_transport
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.index.candidates import Candidates
from roma_ds.index.factories import EXACT, check_factory
from roma_ds.index.live import LiveIndex, Snapshot
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood, prompt_groups
from roma_ds.index.shard import measured_recall
from roma_ds.storage.atomic import make_folder, write_npy

Search = Callable[[NDArray[np.float32], NDArray[np.int64]], Neighbourhood]
NEIGHBOURS = ["neighbours.npy", "inner_products.npy"]
CANDIDATES = ["candidates.npy", "candidate_products.npy"]
CHUNK = 1024
"""Queries that a rank sends at once."""


def outputs(run: RunConfig) -> list[str]:
    """Files of the stage."""
    return [*NEIGHBOURS, *(CANDIDATES if run.roma.refresh != "never" else [])]


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


def check_index(run: RunConfig, world_size: int, width: int | None, samples: int | None) -> None:
    """Raises a RomaError where the index cannot be made or asked as the run wants it, before there is one.

    width: numbers of an embedding, samples: those of training, None while they are not known.
    """
    if run.index.transport == "mpi" and world_size > 1 and find_spec("mpi4py") is None:
        raise EnvironmentFault(
            "index.transport is mpi, and the package mpi4py is not installed",
            "pip install 'roma_ds[mpi]', or set index.transport=torch",
        )
    if run.index.backend == "torch":
        return
    parts = world_size if run.index.placement == "sharded" else 1
    check_factory(
        run.index.factory,
        width,
        None if samples is None else samples // parts,
        run.roma.refresh != "never",
        run.roma.epsilon is not None,
    )


def open_index(
    world: World,
    transport: Transport,
    run: RunConfig,
    embeddings: NDArray[np.float32],
    groups: NDArray[np.int64],
    width: int = 0,
    searched: bool = True,
) -> LiveIndex:
    """The index as the config wants it, S empty, routing vectors of `width` numbers. A collective.

    searched: False where it hardly will be, so that what searches is made only if it comes to that.
    """
    with agreement(world):
        index = LiveIndex(
            world,
            transport,
            embeddings,
            groups,
            width,
            sharded=run.index.placement == "sharded",
            backend=run.index.backend,
            factory=run.index.factory,
            payload=run.index.payload,
            refreshed=run.roma.refresh != "never",
        )
        if searched:
            index.shard.backend  # noqa: B018 - made here, where all ranks agree on what is wrong with it
        return index


def members_only(ids: NDArray[np.int64]) -> Snapshot:
    """S without routing vectors."""
    return Snapshot(0, ids, np.zeros((len(ids), 0), np.float32))


def build_neighbours(
    world: World,
    run: RunConfig,
    samples: Sequence[Sample],
    embeddings: NDArray[np.float32],
    successful: NDArray[np.bool_],
    least: float | None,
    folder: Path,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write `neighbours.npy` (int64 [samples, k], -1 where absent) and `inner_products.npy` (float64).

    embeddings: [samples, dim], unit length; successful: bool [samples], membership in S; least: smallest
    inner product in an epsilon-ball, None for k-NN. Where S is refreshed in training, also `candidates.npy`
    and `candidate_products.npy`: the nearest samples, in S or not. Says the recall of an approximate index.
    A collective. Returns facts for the stage's record.
    """
    roma, count = run.roma, len(samples)
    with agreement(world):
        check_successful(run, successful)
        groups = prompt_groups([sample.prompt for sample in samples])
    transport = open_transport(world, run.index.transport)
    index = open_index(world, transport, run, embeddings, groups)
    index.load(members_only(np.flatnonzero(successful)))
    recall = _recall(index, embeddings, groups, roma.neighbours) if run.index.factory != EXACT else None
    if recall is not None:
        say(f"index: {run.index.factory} finds {100 * recall:.1f}% of the true nearest {roma.neighbours}")

    def neighbours(queries: NDArray[np.float32], own: NDArray[np.int64]) -> Neighbourhood:
        if least is None:
            return index.nearest(queries, own, roma.neighbours)
        return index.within(queries, own, least, run.index.max_neighbours)

    found = [_of_all(index, embeddings, groups, neighbours)]
    if roma.refresh != "never":
        index.load(members_only(np.arange(count)))
        width = min(run.index.candidates, count)

        def nearest(queries: NDArray[np.float32], own: NDArray[np.int64]) -> Neighbourhood:
            return index.nearest(queries, own, width)

        found.append(_of_all(index, embeddings, groups, nearest))
    transport.close()
    gathered = [world.gather_to_first(part) for part in found]
    facts: dict[str, Any] = {}
    with agreement(world):
        if world.is_first:
            make_folder(folder)
            whole = [_interleave(parts, count) for parts in gathered if parts is not None]
            for names, part in zip((NEIGHBOURS, CANDIDATES), whole, strict=False):
                write_npy(folder / names[0], part.ids)
                write_npy(folder / names[1], part.inner_products)
            facts = {
                "successful": int(successful.sum()),
                "empty_neighbourhoods": whole[0].empty,
                "capped_neighbourhoods": whole[0].capped,
                "neighbours_mean": float(whole[0].present.sum(axis=1).mean()),
                **({} if recall is None else {"recall": recall}),
            }
    shared: dict[str, Any] = world.from_first(facts)
    return shared


def _recall(index: LiveIndex, embeddings: NDArray[np.float32], groups: NDArray[np.int64], k: int) -> float:
    """The least recall at `k` of any rank's part, each against an exact search of that part. A collective."""
    with agreement(index.world):
        found = measured_recall(index.shard, embeddings, groups, k)
    return float(index.transport.reduce(np.array(found), "min"))


def _of_all(
    index: LiveIndex, embeddings: NDArray[np.float32], groups: NDArray[np.int64], search: Search
) -> Neighbourhood:
    """What `search` finds for this rank's share of all samples, in rounds that every rank enters."""
    rows = np.array(index.world.share(len(groups)), np.int64)
    rounds = math.ceil(math.ceil(len(groups) / index.world.size) / CHUNK)
    parts = []
    for turn in range(rounds):
        part = rows[turn * CHUNK : (turn + 1) * CHUNK]
        parts.append(search(np.ascontiguousarray(embeddings[part], np.float32), groups[part]))
    return Neighbourhood(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.inner_products for part in parts]),
        sum(part.capped for part in parts),
    )


def _interleave(parts: Sequence[Neighbourhood], total: int) -> Neighbourhood:
    width = parts[0].ids.shape[1]
    ids = np.full((total, width), ABSENT, np.int64)
    products = np.zeros((total, width), np.float64)
    for rank, part in enumerate(parts):
        ids[rank :: len(parts)] = part.ids
        products[rank :: len(parts)] = part.inner_products
    return Neighbourhood(ids, products, sum(part.capped for part in parts))


def load_candidates(folder: Path, factory: str) -> Candidates:
    """The candidate lists that the stage left in `folder`, found by an index of type `factory`."""
    ids = np.load(folder / CANDIDATES[0], mmap_mode="r")
    products = np.load(folder / CANDIDATES[1], mmap_mode="r")
    # A list with room left holds every sample that may be a neighbour, unless the search may miss some.
    return Candidates(ids, products, (ids[:, -1] == ABSENT) & (factory == EXACT))
