"""Search by inner product with FAISS, among all vectors or those that a mask leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.index.backend import Found
from roma_ds.index.factories import EXACT, faiss_module, filled_index, inverted_lists, restricts

GPU_MOST = 2048
"""Most results that FAISS gives for a query on a GPU."""

LOOPING_THREADS = 6
"""Fewer threads than this search a flat index faster as one thread with matrix products: 64 queries among
50,000 x 384 took 33 ms so, and 220 ms of processor time in the library's loop."""

MOST_FILTERED = 256
"""Most results to ask for on the CPU so that enough of them are members; a longer list costs more."""

FEW_QUERIES = 16
"""Below this many queries the matrix product of a flat index is slower than the loop."""


class FaissBackend:
    """A FAISS index on the CPU; a flat one also on the GPU where FAISS is built for it and sees one."""

    def __init__(self, vectors: NDArray[np.float32], factory: str = EXACT, refreshed: bool = False) -> None:
        faiss = faiss_module()
        import torch

        self._faiss = faiss
        self._threads = torch.get_num_threads()
        self.exact = factory == EXACT
        # Learning centroids is many searches among them.
        with self._kernel(multiply=self._threads < LOOPING_THREADS):
            self._index = filled_index(np.ascontiguousarray(vectors), factory, refreshed)
        self._lists = inverted_lists(self._index)
        self._restricts = restricts(self._index)
        self._gpu = _on_gpu(faiss, self._index) if self.exact else None

    def top(self, queries: NDArray[np.float32], count: int, among: NDArray[np.bool_] | None = None) -> Found:
        """See SearchBackend."""
        queries = np.ascontiguousarray(queries)
        if among is None:
            return self._search(queries, count)
        total = len(among)
        asked = min(total, 8 + math.ceil(2 * count * total / max(1, int(among.sum()))))
        if not self._restricts:
            return self._widened(queries, count, among, asked)
        if not self._better_filtered(len(queries), asked):
            return self._search(queries, count, among)
        scores, positions = _filtered(self._search(queries, asked), among, count)
        short = np.flatnonzero(positions[:, -1] < 0)
        if short.size and asked < total:
            scores[short], positions[short] = self._search(queries[short], count, among)
        return scores, positions

    def _widened(
        self, queries: NDArray[np.float32], count: int, among: NDArray[np.bool_], asked: int
    ) -> Found:
        """As `top`, for an index without selection: ask for more until enough of them are members."""
        while True:
            found = _filtered(self._search(queries, asked), among, count)
            if asked == len(among) or (found[1][:, -1] >= 0).all():
                return found
            asked = min(len(among), 4 * asked)

    def within(
        self, queries: NDArray[np.float32], least: float, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SearchBackend."""
        filtering = among is not None and (
            not self._restricts or (self._multiplies(len(queries)) and 4 * among.sum() >= len(among))
        )
        selected = None if filtering else among
        with self._kernel(self._multiplies(len(queries), selected is not None)):
            limits, _, positions = self._index.range_search(
                np.ascontiguousarray(queries),
                np.float32(least).item(),
                params=self._parameters(selected, self._probed),
            )
        rows = np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64)))
        if among is not None and filtering:
            rows, positions = rows[among[positions]], positions[among[positions]]
        return rows, np.asarray(positions, np.int64)

    @property
    def _probed(self) -> int:
        """How many lists a search looks into at first."""
        return 0 if self._lists is None else max(1, round(self._lists.nlist**0.5))

    def _search(
        self, queries: NDArray[np.float32], count: int, among: NDArray[np.bool_] | None = None
    ) -> Found:
        """As `top`, with FAISS's own selection of `among`."""
        if self._gpu is not None and among is None and count <= GPU_MOST:
            # No test of this repository runs this on a GPU.
            scores, positions = self._gpu.search(queries, count)
            return scores, positions
        with self._kernel(self._multiplies(len(queries), among is not None)):
            probed = self._parameters(among, self._probed)
            scores, positions = self._index.search(queries, count, params=probed)
            # The lists that were looked into may hold too few members: those queries look into all of them.
            short = np.flatnonzero(positions[:, -1] < 0)
            if short.size and self._lists is not None:
                everywhere = self._parameters(among, self._lists.nlist)
                scores[short], positions[short] = self._index.search(queries[short], count, params=everywhere)
        return scores, positions

    def _parameters(self, among: NDArray[np.bool_] | None, probed: int) -> Any:
        """What restricts a search to `among`, and to the `probed` nearest lists of an index with lists."""
        if among is None and self._lists is None:
            return None
        chosen: dict[str, Any] = {}
        if among is not None:
            chosen["sel"] = self._faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))
        if self._lists is None:
            parameters = self._faiss.SearchParameters(**chosen)
        else:
            parameters = self._faiss.SearchParametersIVF(nprobe=probed, **chosen)
        if isinstance(self._index, self._faiss.IndexPreTransform):
            return self._faiss.SearchParametersPreTransform(index_params=parameters)
        return parameters

    def _better_filtered(self, queries: int, asked: int) -> bool:
        """Whether to ask for more than is wanted and leave out those that are no members.

        With a selector FAISS loops where it could multiply; and a flat index on a GPU may pass it over.
        """
        if self._gpu is not None:
            return asked <= GPU_MOST
        return self._multiplies(queries) and asked <= MOST_FILTERED

    def _multiplies(self, queries: int, masked: bool = False) -> bool:
        return self.exact and not masked and queries >= FEW_QUERIES and self._threads < LOOPING_THREADS

    @contextmanager
    def _kernel(self, multiply: bool) -> Iterator[None]:
        """Matrix products in one thread, or the library's loop in all threads of this process.

        Several threads would fight inside the matrix product: two took 4 to 5 times as long as one. Both
        settings are the whole library's, and where torch was imported first the number of threads is torch's
        too, so it is given back.
        """
        before = self._faiss.omp_get_max_threads()
        self._faiss.cvar.distance_compute_blas_threshold = 1 if multiply else 2**31 - 1
        self._faiss.omp_set_num_threads(1 if multiply else self._threads)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)


def _filtered(found: Found, among: NDArray[np.bool_], count: int) -> Found:
    """The first `count` of each row that are members, then positions -1."""
    scores, positions = found
    outside = (positions < 0) | ~among[positions]
    order = np.argsort(outside, axis=1, kind="stable")[:, :count]
    kept = np.where(outside, -1, positions)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(kept, order, 1)


def _on_gpu(faiss: Any, index: Any) -> Any:
    """`index` copied to this process's GPU, or None without one."""
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return None
    import torch

    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)
