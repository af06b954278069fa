"""A part of the samples that can be searched for neighbours, with the membership of each in S."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.index.backend import SearchBackend
from roma_ds.index.factories import EXACT
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.search import TIE_TOLERANCE, exact_products, make_backend

EMBED_AGAIN = "delete the embed folder and run again"
MOST_PAIRS = 2**24
"""Query-answer pairs held at once, at some 50 bytes each; a single query may have more."""

NOWHERE = np.iinfo(np.int64).max
"""Sorts behind every id."""


class Shard:
    """Vectors [n, dim] by ascending global id: who are the nearest members of S?

    Answers hold global ids in one total order, whatever the backend: float64 inner product descending, then
    id ascending. Nobody of the query's own group is among them. With factory `Flat` they are exact; other
    factories of the FAISS backend may miss members, and order what they find by the same exact products.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        groups: NDArray[np.int64],
        backend: str,
        factory: str = EXACT,
        *,
        members: NDArray[np.bool_] | None = None,
        refreshed: bool = False,
        device: str = "cpu",
    ) -> None:
        """All vectors are members unless `members` [n] says which.

        refreshed: `members` will change; device: where the torch backend computes. Raises UserError on ids
        that are negative, repeated or not ascending, and on vectors that are not finite float32 [n, dim].
        """
        check_ids(ids)
        if len(vectors) != len(ids) or len(groups) != len(ids):
            raise UserError(
                f"the index has {len(ids)} ids, {len(vectors)} embeddings and {len(groups)} prompt groups",
                EMBED_AGAIN,
            )
        check_vectors(vectors, ids, "id")
        self.ids = ids
        self.vectors = np.ascontiguousarray(vectors)
        self.groups = groups
        self.members: NDArray[np.bool_] = np.ones(len(ids), np.bool_) if members is None else members.copy()
        """[n], who is in S; may be written to in place."""
        self._made_by = (backend, factory, refreshed, device)
        self._group_numbers, self._group_sizes = np.unique(groups, return_counts=True)
        self._longest = _lengths(self.vectors).max(initial=0.0)

    @functools.cached_property
    def backend(self) -> SearchBackend:
        """What searches, made when first asked for. Raises UserError where the factory cannot be used."""
        name, factory, refreshed, device = self._made_by
        return make_backend(name, self.vectors, factory, refreshed, device)

    @classmethod
    def of_successful(
        cls,
        embeddings: NDArray[np.float32],
        successful: NDArray[np.bool_],
        groups: NDArray[np.int64],
        backend: str,
        factory: str = EXACT,
    ) -> Shard:
        """The successful ones among all samples [n], for a set S that stays as it is."""
        ids = np.flatnonzero(successful).astype(np.int64)
        return cls(ids, embeddings[ids], groups[ids], backend, factory)

    def set_members(self, ids: NDArray[np.int64], value: bool | NDArray[np.bool_]) -> None:
        """Take `ids` into S or out of it. Raises UserError naming an id that this shard does not hold."""
        ids = np.asarray(ids, np.int64)
        places = np.searchsorted(self.ids, ids)
        held = np.zeros(len(ids), np.bool_)
        inside = places < len(self.ids)
        held[inside] = self.ids[places[inside]] == ids[inside]
        if not held.all():
            raise UserError(
                f"id {ids[~held][0]} is not in this part of the index",
                "send updates of an id only to the rank that holds it, and only for samples of this run",
            )
        self.members[places] = value

    def nearest(
        self, queries: NDArray[np.float32], groups: NDArray[np.int64], k: int, chunk: int = 512
    ) -> Neighbourhood:
        """The k members of largest product with each query [q, dim], fewer where S has not as many.

        groups: [q], prompt group of each query. Raises UserError on queries that are no finite float32
        vectors of the index's dimension.
        """
        self._check_queries(queries, groups)
        ids = np.full((len(queries), k), ABSENT, np.int64)
        products = np.zeros((len(queries), k), np.float64)
        total = int(self.members.sum())
        among = None if total == len(self.ids) else self.members
        tolerance = self._tolerance(queries)
        pending = np.arange(len(queries))
        count = min(total, k + 4 + min(self._copies(groups), 64))
        while pending.size and count:
            unsure = []
            step = max(1, min(chunk, MOST_PAIRS // count))
            for start in range(0, pending.size, step):
                part = pending[start : start + step]
                scores, positions = self.backend.top(queries[part], count, among)
                found, values = self._ranked(queries[part], groups[part], positions, k)
                sure = (positions[:, -1] < 0) | (count == total)
                enough = (
                    found[:, -1] != ABSENT if found.shape[1] == k else np.zeros(len(part), dtype=np.bool_)
                )
                if self.backend.exact:
                    # Nothing that was left out can reach the k-th product, not even as a tie.
                    enough &= scores[:, -1] < values[:, -1] - tolerance[part]
                sure |= enough
                width = found.shape[1]
                ids[part[sure], :width] = found[sure]
                products[part[sure], :width] = values[sure]
                unsure.append(part[~sure])
            pending = np.concatenate(unsure)
            count = min(total, 4 * count)
        return Neighbourhood(ids, products)

    def within(
        self, queries: NDArray[np.float32], groups: NDArray[np.int64], least: float, cap: int
    ) -> Neighbourhood:
        """Members whose product with a query [q, dim] is at least `least`, at most the `cap` best of them.

        Errors as for `nearest`.
        """
        self._check_queries(queries, groups)
        ids = np.full((len(queries), cap), ABSENT, np.int64)
        products = np.zeros((len(queries), cap), np.float64)
        capped = 0
        among = None if self.members.all() else self.members
        tolerance = self._tolerance(queries)
        for part in self._blocks(len(queries)):
            asking = queries[part]
            # Backends take what is above a float32 number: the next one below still lets equals in.
            lowest = np.nextafter(np.float32(least - tolerance[part].max()), np.float32(-np.inf))
            rows, positions = self.backend.within(asking, float(lowest), among)
            allowed = self.groups[positions] != groups[part][rows]
            rows, positions = rows[allowed], positions[allowed]
            values = exact_products(asking, rows, self.vectors, positions)
            inside = values >= least
            rows, found, values = rows[inside], self.ids[positions[inside]], values[inside]
            order = np.lexsort((found, -values, rows))
            rows, found, values = rows[order], found[order], values[order]
            sizes = np.bincount(rows, minlength=len(asking))
            place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            kept = place < cap
            ids[part][rows[kept], place[kept]] = found[kept]
            products[part][rows[kept], place[kept]] = values[kept]
            capped += int((sizes > cap).sum())
        return Neighbourhood(ids, products, capped)

    def _ranked(
        self,
        queries: NDArray[np.float32],
        groups: NDArray[np.int64],
        positions: NDArray[np.int64],
        k: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The first k of `positions` [q, c] in total order: ids, ABSENT behind the last, and products."""
        allowed = (positions >= 0) & (self.groups[positions] != groups[:, None])
        rows, columns = np.nonzero(allowed)
        chosen = positions[rows, columns]
        ids = np.full(positions.shape, NOWHERE, np.int64)
        ids[rows, columns] = self.ids[chosen]
        values = np.full(positions.shape, -np.inf)
        values[rows, columns] = exact_products(queries, rows, self.vectors, chosen)
        order = np.lexsort((ids, -values))[:, :k]
        ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
        missing = ids == NOWHERE
        return np.where(missing, ABSENT, ids), np.where(missing, 0.0, values)

    def _copies(self, groups: NDArray[np.int64]) -> int:
        """The most vectors of one of these groups: so many finds can fall to the exclusion."""
        places = np.searchsorted(self._group_numbers, groups)
        places = np.minimum(places, max(0, len(self._group_numbers) - 1))
        if not len(self._group_numbers):
            return 0
        same = self._group_numbers[places] == groups
        return int(self._group_sizes[places[same]].max(initial=0))

    def _tolerance(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """[q], how far a backend's score may lie from the product."""
        error = max(TIE_TOLERANCE, queries.shape[1] * 2.0**-24)
        tolerance: NDArray[np.float64] = error * self._longest * _lengths(queries)
        return tolerance

    def _blocks(self, queries: int) -> Iterator[slice]:
        """Blocks of queries that everyone could answer, or single queries."""
        step = max(1, min(256, MOST_PAIRS // max(1, len(self.ids))))
        return (slice(start, start + step) for start in range(0, queries, step))

    def _check_queries(self, queries: NDArray[np.float32], groups: NDArray[np.int64]) -> None:
        if len(groups) != len(queries):
            raise UserError(f"{len(queries)} queries with {len(groups)} prompt groups", EMBED_AGAIN)
        check_vectors(queries, np.arange(len(queries)), "query")
        if queries.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"query 0 has {queries.shape[1]} numbers, and the embeddings have {self.vectors.shape[1]}",
                EMBED_AGAIN,
            )


def check_ids(ids: NDArray[np.int64]) -> None:
    """Raises UserError, naming the first one, unless ids are an int64 array [n], ascending from 0 or more."""
    fix = "give every sample one id, its row of samples.parquet"
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise UserError(f"the ids of an index are {ids.dtype} {list(ids.shape)}, not int64 [n]", fix)
    if not len(ids):
        return
    if ids.min() < 0:
        raise UserError(f"id {ids[ids < 0][0]} is negative", fix)
    steps = np.diff(ids)
    if (steps > 0).all():
        return
    numbers, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"id {numbers[counts > 1][0]} is there twice", fix)
    place = int(np.flatnonzero(steps < 0)[0])
    raise UserError(f"id {ids[place + 1]} comes after id {ids[place]}: ids must ascend", fix)


def check_vectors(vectors: NDArray[np.float32], ids: NDArray[np.int64], noun: str) -> None:
    """Raises UserError, naming the first of `ids` [n] at fault, unless vectors are finite float32 [n, d]."""
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise UserError(
            f"embeddings have the shape {list(vectors.shape)}, which is not [n, dimensions]", EMBED_AGAIN
        )
    if not len(ids):
        return
    if vectors.dtype != np.float32:
        raise UserError(
            f"the embedding of {noun} {ids[0]} and those after it are {vectors.dtype}, not float32",
            EMBED_AGAIN,
        )
    # A float64 sum of float32 numbers cannot overflow: it is finite where all of them are.
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(vectors.sum(axis=1, dtype=np.float64))
    if bad.any():
        raise UserError(f"the embedding of {noun} {ids[bad][0]} is not finite", EMBED_AGAIN)


def measured_recall(
    shard: Shard,
    queries: NDArray[np.float32],
    groups: NDArray[np.int64],
    k: int,
    sample: int = 256,
    seed: int = 0,
) -> float:
    """The share of the true k nearest members that the shard finds, over `sample` of the queries [q, dim].

    The truth is an exact search over the same members. Of equal products any counts. 1 without neighbours.
    """
    chosen = np.random.default_rng(seed).permutation(len(queries))[:sample]
    exact = Shard(shard.ids, shard.vectors, shard.groups, "torch", members=shard.members)
    truth = exact.nearest(queries[chosen], groups[chosen], k)
    found = shard.nearest(queries[chosen], groups[chosen], k)
    wanted = int(truth.present.sum())
    if not wanted:
        return 1.0
    last = np.where(truth.present, truth.inner_products, np.inf).min(axis=1)
    return float((found.present & (found.inner_products >= last[:, None])).sum()) / wanted


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return lengths
