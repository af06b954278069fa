"""Neighbours of training samples among the present members of S, without a search where lists suffice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roma_ds.index.candidates import Candidates
from roma_ds.index.live import LiveIndex
from roma_ds.index.neighbourhood import Neighbourhood


class LiveNeighbours:
    """k nearest members, or those of an epsilon-ball: equal to searching, whichever way they are found.

    A sample's candidates are its nearest samples, in S or not, in the order of a search. The first k of them
    that are in S now are its neighbours; where the list ends before, it is searched.
    """

    def __init__(
        self,
        index: LiveIndex,
        candidates: Candidates,
        embeddings: NDArray[np.float32],
        groups: NDArray[np.int64],
        count: int,
        least: float | None = None,
    ) -> None:
        """embeddings [n, d], groups [n]; count: k, or with `least`, the least inner product, the cap."""
        self.index = index
        self.candidates = candidates
        self.embeddings = embeddings
        self.groups = groups
        self.count = count
        self.least = least
        self.searched = 0
        """Samples of this rank whose list ran dry."""

    def of(self, rows: Sequence[int]) -> tuple[Neighbourhood, NDArray[np.float32]]:
        """Neighbours of samples `rows`, and their routing vectors [rows, count, w].

        A collective of all ranks where the index is sharded.
        """
        chosen = np.asarray(rows, np.int64)
        members = self.index.members
        if self.least is None:
            found, dry = self.candidates.nearest(chosen, members, self.count)
        else:
            found, dry = self.candidates.within(chosen, members, self.least, self.count)
        vectors = self.index.vectors_unless(bool(dry.any()), found.ids)
        if vectors is not None:
            return found, vectors
        wanted = np.flatnonzero(dry)
        asking = chosen[wanted]
        queries = np.ascontiguousarray(self.embeddings[asking], np.float32)
        if self.least is None:
            searched = self.index.nearest(queries, self.groups[asking], self.count)
        else:
            searched = self.index.within(queries, self.groups[asking], self.least, self.count)
        self.searched += len(wanted)
        found.ids[wanted] = searched.ids
        found.inner_products[wanted] = searched.inner_products
        found = Neighbourhood(found.ids, found.inner_products, found.capped + searched.capped)
        return found, self.index.vectors(found.ids)
