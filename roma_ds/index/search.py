"""Exact nearest neighbours by inner product, behind one interface for FAISS and torch.

A backend proposes candidates; `rank` orders them. Libraries promise no order among equal scores and their
kernels differ in the last bits with the batch size, so scores are computed anew in float64, one row at a
time, and ordered by score descending, then id ascending: the same on every backend and rank count.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import EnvironmentFault, UserError

TIE_TOLERANCE = 1e-5


class SearchBackend(Protocol):
    """Holds vectors [members, dim] by position and finds those of largest inner product."""

    def top(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions [queries, count], best first; count at most the number of members."""

    def within(self, query: NDArray[np.float32], least: float) -> NDArray[np.int64]:
        """Positions of all members whose inner product with one query [dim] is at least `least`."""


class FaissBackend:
    """FAISS flat inner-product index on the CPU."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        try:
            import faiss
        except ImportError as error:
            raise EnvironmentFault(
                "index.backend is faiss, and no FAISS is installed",
                "pip install 'roma_ds[cpu]' (or [gpu], never both), or set index.backend=torch",
            ) from error
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors))

    def top(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See SearchBackend."""
        scores, positions = self._index.search(np.ascontiguousarray(queries), count)
        return scores, positions

    def within(self, query: NDArray[np.float32], least: float) -> NDArray[np.int64]:
        """See SearchBackend."""
        _, _, positions = self._index.range_search(query[None], np.float32(least).item())
        return np.asarray(positions, np.int64)


class TorchBackend:
    """One matrix product and a top-k, on the CPU or an accelerator."""

    def __init__(self, vectors: NDArray[np.float32], device: str = "cpu") -> None:
        import torch

        self._torch = torch
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors)).to(device)

    def top(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See SearchBackend."""
        products = (
            self._torch.from_numpy(np.ascontiguousarray(queries)).to(self._vectors.device) @ self._vectors.T
        )
        scores, positions = products.topk(count, dim=1)
        return scores.cpu().numpy(), positions.cpu().numpy()

    def within(self, query: NDArray[np.float32], least: float) -> NDArray[np.int64]:
        """See SearchBackend."""
        products = self._vectors @ self._torch.from_numpy(query).to(self._vectors.device)
        return (products > least).nonzero()[:, 0].cpu().numpy()


def make_backend(name: str, vectors: NDArray[np.float32]) -> SearchBackend:
    """The backend called `faiss` or `torch` over `vectors`.

    Raises UserError on vectors that are not finite: FAISS would drop them silently.
    """
    if not np.isfinite(vectors).all():
        raise UserError("an embedding in the index is not finite", "delete the embed folder and run again")
    return FaissBackend(vectors) if name == "faiss" else TorchBackend(vectors)


def rank(
    query: NDArray[np.float32], vectors: NDArray[np.float32], ids: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Inner products of one query [dim] with vectors [c, dim], in total order, and their ids."""
    scores = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((ids, -scores))
    return scores[order], ids[order]
