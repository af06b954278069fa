"""What the index asks of a library that searches by inner product."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class SearchBackend(Protocol):
    """Holds vectors [n, dim] by position and finds those of largest inner product."""

    exact: bool
    """False where a true neighbour can be missed."""

    def top(self, queries: NDArray[np.float32], count: int, among: NDArray[np.bool_] | None = None) -> Found:
        """Scores and positions [queries, count], best first, of vectors with `among` [n] set.

        1 <= count <= n. Where there are fewer, positions end in -1; their scores mean nothing.
        """

    def within(
        self, queries: NDArray[np.float32], least: float, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(query, position) pairs of vectors whose score is above `least`, in order of the query.

        Up to queries x n pairs: the caller bounds the number of queries.
        """
