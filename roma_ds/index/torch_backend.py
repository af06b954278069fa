"""Search by inner product with matrix products and a top-k of torch, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.index.backend import Found


class TorchBackend:
    """Matrix products and a top-k in blocks, on the CPU or an accelerator."""

    exact = True
    QUERIES = 256
    VECTORS = 65536
    """A block of scores is at most QUERIES x VECTORS float32: 64 MiB."""

    def __init__(self, vectors: NDArray[np.float32], device: str = "cpu") -> None:
        import torch

        self._torch = torch
        self._vectors = torch.from_numpy(np.require(vectors, requirements=("C", "W"))).to(device)

    def top(self, queries: NDArray[np.float32], count: int, among: NDArray[np.bool_] | None = None) -> Found:
        """See SearchBackend."""
        torch = self._torch
        scores = np.empty((len(queries), count), np.float32)
        positions = np.empty((len(queries), count), np.int64)
        for start in range(0, len(queries), self.QUERIES):
            part = slice(start, start + self.QUERIES)
            best = torch.empty((len(queries[part]), 0), device=self._vectors.device)
            place = torch.empty(best.shape, dtype=torch.int64, device=self._vectors.device)
            for first, block in self._blocks(queries[part], among):
                found, index = block.topk(min(count, block.shape[1]), dim=1)
                best, place = torch.cat([best, found], 1), torch.cat([place, index + first], 1)
                best, order = best.topk(min(count, best.shape[1]), dim=1)
                place = place.gather(1, order)
            place.masked_fill_(best.isneginf(), -1)
            scores[part], positions[part] = best.cpu().numpy(), place.cpu().numpy()
        return scores, positions

    def within(
        self, queries: NDArray[np.float32], least: float, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See SearchBackend."""
        found = [np.empty((0, 2), np.int64)]
        for start in range(0, len(queries), self.QUERIES):
            for first, block in self._blocks(queries[start : start + self.QUERIES], among):
                # A mask of -inf is above no threshold, not even -inf.
                pairs = (block > least).nonzero().cpu().numpy()
                found.append(pairs + np.array([start, first]))
        pairs = np.concatenate(found)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        return pairs[:, 0], pairs[:, 1]

    def _blocks(
        self, queries: NDArray[np.float32], among: NDArray[np.bool_] | None
    ) -> Iterator[tuple[int, Any]]:
        """(first position, scores [queries, block]) over all vectors; -inf outside `among`."""
        torch, device = self._torch, self._vectors.device
        given = torch.from_numpy(np.require(queries, requirements=("C", "W"))).to(device)
        outside = None if among is None else torch.from_numpy(~among).to(device)
        for first in range(0, len(self._vectors), self.VECTORS):
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                scores = given @ self._vectors[first : first + self.VECTORS].T
            finally:
                torch.set_float32_matmul_precision(precision)
            if outside is not None:
                scores.masked_fill_(outside[first : first + self.VECTORS], -torch.inf)
            yield first, scores
