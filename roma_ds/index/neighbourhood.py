"""The neighbours of every sample among the successful ones (equations 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.index.search import TIE_TOLERANCE, SearchBackend, make_backend, rank

ABSENT = -1


@dataclass(frozen=True)
class Neighbourhood:
    """Neighbours of n samples, best first, padded on the right with ABSENT."""

    ids: NDArray[np.int64]
    """[n, k], rows of samples.parquet"""
    inner_products: NDArray[np.float64]
    """[n, k], of unit embeddings; 0 where absent"""
    capped: int = 0
    """Samples whose epsilon-ball held more than the cap."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """[n, k], True where there is a neighbour."""
        found: NDArray[np.bool_] = self.ids != ABSENT
        return found

    @property
    def empty(self) -> int:
        """Samples without any neighbour."""
        return int((~self.present.any(axis=1)).sum())


def prompt_groups(prompts: Sequence[str]) -> NDArray[np.int64]:
    """[n], equal numbers for equal prompts: these are never neighbours of each other."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], np.int64)


class NeighbourFinder:
    """Exact search among the successful samples, leaving out a sample itself and copies of its prompt.

    Raises UserError on embeddings that are not finite, whether they are searched or ask.
    """

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        successful: NDArray[np.bool_],
        groups: NDArray[np.int64],
        backend: str,
    ) -> None:
        if not np.isfinite(embeddings).all():
            raise UserError("an embedding is not finite", "delete the embed folder and run again")
        self.embeddings = embeddings
        self.groups = groups
        self.members: NDArray[np.int64] = np.flatnonzero(successful)
        self.vectors = np.ascontiguousarray(embeddings[self.members])
        self.backend: SearchBackend = make_backend(backend, self.vectors)
        sizes = np.bincount(groups[self.members], minlength=int(groups.max(initial=-1)) + 1)
        self.copies = sizes
        """Members of each prompt group: how many candidates the exclusion can remove."""

    def nearest(self, rows: Sequence[int], k: int, chunk: int = 256) -> Neighbourhood:
        """The k most similar members of each row's sample, fewer where there are not enough."""
        ids = np.full((len(rows), k), ABSENT, np.int64)
        products = np.zeros((len(rows), k), np.float64)
        pending = np.arange(len(rows))
        chosen = np.asarray(rows, np.int64)
        widest = int(self.copies[self.groups[chosen]].max(initial=0)) if len(rows) else 0
        count = min(len(self.members), k + widest + 4)
        while pending.size and count:
            unsure = []
            for start in range(0, pending.size, chunk):
                part = pending[start : start + chunk]
                scores, positions = self.backend.top(self.embeddings[chosen[part]], count)
                for place, row_scores, row_positions in zip(part, scores, positions, strict=True):
                    found, values = self._ranked(int(chosen[place]), row_positions)
                    complete = count == len(self.members)
                    if not complete and (len(found) < k or row_scores[-1] >= values[k - 1] - TIE_TOLERANCE):
                        unsure.append(place)
                        continue
                    ids[place, : min(k, len(found))] = found[:k]
                    products[place, : min(k, len(found))] = values[:k]
            pending = np.array(unsure, np.int64)
            count = min(len(self.members), 2 * count)
        return Neighbourhood(ids, products)

    def within(self, rows: Sequence[int], least: float, cap: int) -> Neighbourhood:
        """Members whose inner product with a row's sample is at least `least`, at most the `cap` best."""
        ids = np.full((len(rows), cap), ABSENT, np.int64)
        products = np.zeros((len(rows), cap), np.float64)
        capped = 0
        for place, row in enumerate(rows):
            positions = self.backend.within(self.embeddings[row], least - TIE_TOLERANCE)
            found, values = self._ranked(int(row), positions)
            found, values = found[values >= least], values[values >= least]
            capped += len(found) > cap
            ids[place, : min(cap, len(found))] = found[:cap]
            products[place, : min(cap, len(found))] = values[:cap]
        return Neighbourhood(ids, products, capped)

    def _ranked(
        self, row: int, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids = self.members[positions]
        allowed = self.groups[ids] != self.groups[row]
        values, ordered = rank(self.embeddings[row], self.vectors[positions[allowed]], ids[allowed])
        return ordered, values
