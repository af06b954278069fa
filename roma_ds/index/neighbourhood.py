"""The neighbours of samples among the successful ones (equations 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ABSENT = -1


@dataclass(frozen=True)
class Neighbourhood:
    """Neighbours of n samples, best first, padded on the right with ABSENT."""

    ids: NDArray[np.int64]
    """[n, k], rows of samples.parquet"""
    inner_products: NDArray[np.float64]
    """[n, k], of unit embeddings; 0 where absent"""
    capped: int = 0
    """Samples whose epsilon-ball held more than the cap."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """[n, k], True where there is a neighbour."""
        found: NDArray[np.bool_] = self.ids != ABSENT
        return found

    @property
    def empty(self) -> int:
        """Samples without any neighbour."""
        return int((~self.present.any(axis=1)).sum())


def prompt_groups(prompts: Sequence[str]) -> NDArray[np.int64]:
    """[n], equal numbers for equal prompts: these are never neighbours of each other."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], np.int64)
