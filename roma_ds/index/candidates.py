"""The nearest of all samples, listed once for each: neighbours in S by walking, without a search.

Embeddings do not change, so neither do the lists. Membership in S does: the first k members in a list are
the k nearest members, as long as the list has k. A list that ends before is dry, and the caller searches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.shard import Shard


@dataclass(frozen=True)
class Candidates:
    """Lists of n samples, in the total order of `Shard`; nobody of a sample's own group is in its list."""

    ids: NDArray[np.int64]
    """[n, width], rows of samples.parquet, ABSENT behind the last"""
    products: NDArray[np.float64]
    """[n, width], inner products; 0 where absent"""
    complete: NDArray[np.bool_]
    """[n], True where the list holds every sample that could ever be a neighbour"""

    @classmethod
    def build(
        cls,
        shard: Shard,
        vectors: NDArray[np.float32],
        groups: NDArray[np.int64],
        rows: NDArray[np.int64],
        width: int,
    ) -> Candidates:
        """The lists of samples `rows` among all that `shard` holds, each at most `width` long.

        vectors: [samples, dim]; groups: [samples]. Raises ValueError unless all in the shard are members.
        """
        if not shard.members.all():
            raise ValueError("candidates are drawn from all samples, and some of them are no members")
        found = shard.nearest(vectors[rows], groups[rows], width)
        return cls.of(found, len(shard.ids) - copies(groups[rows], shard.groups))

    @classmethod
    def of(cls, found: Neighbourhood, possible: NDArray[np.int64]) -> Candidates:
        """Lists out of the nearest of all samples; possible: [n], how many could be in each list."""
        return cls(found.ids, found.inner_products, found.present.sum(axis=1) == possible)

    def nearest(
        self, rows: NDArray[np.int64], members: NDArray[np.bool_], k: int
    ) -> tuple[Neighbourhood, NDArray[np.bool_]]:
        """The k nearest members of the lists `rows`, and dry: [rows], True where a search must say.

        rows: places in these lists, [rows]; members: [samples], who is in S. What is returned of a dry list
        is right as far as it goes.
        """
        taken = self._members(rows, members)
        dry = (taken.sum(axis=1) < k) & ~self.complete[rows]
        return self._first(rows, taken, k), dry

    def within(
        self, rows: NDArray[np.int64], members: NDArray[np.bool_], least: float, cap: int
    ) -> tuple[Neighbourhood, NDArray[np.bool_]]:
        """Members with a product of at least `least`, at most the `cap` best; rows, members, dry as above.

        A list knows when it goes on below `least` or has more than `cap` members above: one more tells that
        the cap was met. `capped` counts lists that are not dry.
        """
        taken = self._members(rows, members) & (self.products[rows] >= least)
        sizes = taken.sum(axis=1)
        # An incomplete list of full length ends in its least product; any other may lack anything.
        width = self.ids.shape[1]
        full = (self.ids[rows] != ABSENT).sum(axis=1) == width
        last = self.products[rows, -1] if width else np.full(len(rows), np.inf)
        dry = ~self.complete[rows] & (sizes <= cap) & ~(full & (last < least))
        first = self._first(rows, taken, cap)
        return Neighbourhood(first.ids, first.inner_products, int((sizes > cap).sum())), dry

    def _members(self, rows: NDArray[np.int64], members: NDArray[np.bool_]) -> NDArray[np.bool_]:
        listed = self.ids[rows]
        # ABSENT looks up the last sample, whatever it is; `listed` then says that nobody is there.
        return (listed != ABSENT) & members[listed] if listed.size else np.zeros(listed.shape, np.bool_)

    def _first(self, rows: NDArray[np.int64], taken: NDArray[np.bool_], count: int) -> Neighbourhood:
        """The first `count` that are `taken` [rows, width] of each list."""
        place = taken.cumsum(axis=1) - 1
        lines, columns = np.nonzero(taken & (place < count))
        ids = np.full((len(rows), count), ABSENT, np.int64)
        products = np.zeros((len(rows), count), np.float64)
        ids[lines, place[lines, columns]] = self.ids[rows[lines], columns]
        products[lines, place[lines, columns]] = self.products[rows[lines], columns]
        return Neighbourhood(ids, products)


def copies(groups: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n], how often each of `groups` occurs in `among`."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, groups, "right") - np.searchsorted(ordered, groups, "left")
