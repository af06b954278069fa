"""Routing vectors by id, as many as this rank keeps.

Shapes: n samples in all, w numbers in a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

PayloadType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Placement:
    """Which ids a rank keeps: all of them, or every one whose number leaves its rank over."""

    rank: int
    size: int
    sharded: bool

    @property
    def _step(self) -> int:
        return self.size if self.sharded else 1

    def own(self, count: int) -> NDArray[np.int64]:
        """The ids below `count` that this rank keeps, ascending."""
        return np.arange(self.rank if self.sharded else 0, count, self._step, dtype=np.int64)

    def mine(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `ids` this rank keeps."""
        kept: NDArray[np.bool_] = self.owner(ids) == self.rank
        return kept

    def owner(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rank that keeps each id; this one where all are kept."""
        return ids % self.size if self.sharded else np.full_like(ids, self.rank)

    def place(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where this rank keeps each of its `ids`."""
        return ids // self._step


class Payload:
    """Rows in the payload's own type; bfloat16 is held as its bits, since NumPy has no such type."""

    def __init__(self, placement: Placement, count: int, width: int, dtype: PayloadType) -> None:
        self.placement = placement
        self.dtype = dtype
        self.rows: NDArray[Any] = np.zeros(
            (len(placement.own(count)), width), np.float32 if dtype == "float32" else np.int16
        )

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.rows.shape[1])

    def encoded(self, vectors: NDArray[np.floating]) -> NDArray[Any]:
        """[.., w] in the type that is kept."""
        exact = np.ascontiguousarray(vectors, np.float32)
        if self.dtype == "float32":
            return exact
        return torch.from_numpy(exact).to(torch.bfloat16).view(torch.int16).numpy()

    def decoded(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """float32 [.., w]"""
        if self.dtype == "float32":
            return np.asarray(rows, np.float32)
        return torch.from_numpy(np.ascontiguousarray(rows)).view(torch.bfloat16).float().numpy()

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of `ids`, which this rank keeps."""
        found: NDArray[Any] = self.rows[self.placement.place(ids)]
        return found

    def write(self, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Set rows of `ids`, which this rank keeps."""
        self.rows[self.placement.place(ids)] = rows
