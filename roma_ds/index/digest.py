"""Order-free digests of rows: equal contents give equal sums, and one flipped bit another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def of_ids(ids: NDArray[np.int64]) -> int:
    """Digest of a set of ids, 0 to 2^64 - 1."""
    return int(_mixed(ids.astype(np.uint64)).sum(dtype=np.uint64))


def of_rows(ids: NDArray[np.int64], rows: NDArray[np.generic]) -> int:
    """Digest of rows [m, w] of any dtype, each under its id [m]: a sum, 0 to 2^64 - 1.

    Every 8 bytes of a row are multiplied by an odd number of their own, so a change in one of them always
    changes the row's sum.
    """
    if not len(ids):
        return 0
    content = np.ascontiguousarray(rows).view(np.uint8).reshape(len(ids), -1)
    short = -content.shape[1] % 8
    if short:
        content = np.pad(content, ((0, 0), (0, short)))
    lanes = content.view(np.uint64)
    odd = _mixed(np.arange(lanes.shape[1], dtype=np.uint64)) | np.uint64(1)
    sums = np.einsum("rl,l->r", lanes, odd)
    return int(_mixed(sums ^ _mixed(ids.astype(np.uint64))).sum(dtype=np.uint64))
