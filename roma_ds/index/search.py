"""Search by inner product among vectors that never change, behind one interface for FAISS and torch.

A backend proposes positions; `exact_products` scores them anew. Libraries promise no order among equal
scores, and their kernels differ in the last bits with the batch size. So whoever asks orders what a backend
proposes by float64 products, descending, then by id: the same on every backend and number of ranks.
Membership is a mask: nothing is ever removed from an index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.index.backend import SearchBackend
from roma_ds.index.factories import EXACT
from roma_ds.index.faiss_backend import FaissBackend
from roma_ds.index.torch_backend import TorchBackend

TIE_TOLERANCE = 1e-5
"""How far a backend's float32 score of two unit vectors may lie from their product."""


def make_backend(
    name: str,
    vectors: NDArray[np.float32],
    factory: str = EXACT,
    refreshed: bool = False,
    device: str = "cpu",
) -> SearchBackend:
    """The backend called `faiss` or `torch` over finite `vectors` [n, dim]; FAISS would drop others silently.

    refreshed: searches will be restricted to a set that changes; device: of the torch backend. Raises
    UserError on a factory that does not fit.
    """
    if name == "faiss":
        return FaissBackend(vectors, factory, refreshed)
    if factory != EXACT:
        raise UserError(
            f"index.factory is {factory}, which the torch backend does not have",
            f"set index.backend=faiss, or index.factory={EXACT}",
        )
    return TorchBackend(vectors, device)


def exact_products(
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    positions: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Inner products [pairs] of queries[rows] with vectors[positions], to the last bit whatever the batch."""
    values = np.empty(len(rows), np.float64)
    # 2^21 float64 numbers: a block stays near the processor's caches, and memory is bounded.
    step = max(1, 2**21 // max(1, vectors.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        terms = vectors[positions[part]].astype(np.float64)
        terms *= queries[rows[part]]
        values[part] = terms.sum(axis=1)
    return values
