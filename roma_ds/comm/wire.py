"""Bytes between ranks: what carries the rows of a transport."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


class Wire(Protocol):
    """Moves bytes between two ranks or more; transport.py has checked what is moved. All are collectives."""

    most_rows: int
    """Rows that one rank can send or receive in one call."""
    sleeps: bool
    """Whether a rank that waits leaves its processor to others."""

    def headers(self, mine: Integers) -> Integers:
        """[R, k], every rank's header [k]."""

    def all_gather(self, rows: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """Fill `received` with every rank's `rows` in rank order; counts: [R] rows of `width` bytes."""

    def all_to_all(self, sent: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """Deal out `sent` and fill `received`, both in rank order; counts: [from R, to R] rows."""

    def close(self) -> None:
        """Leave."""
