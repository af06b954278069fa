"""Some sequences of a prefix cache, under numbers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from roma_ds.backbone.cache_plan import CachePlan
from roma_ds.backbone.prefix_cache import PrefixCache


@dataclass(frozen=True)
class CachePart:
    """Reads as a cache in which sequence i is number `numbers[i]` of the whole one."""

    cache: PrefixCache
    numbers: Sequence[int]

    @property
    def plan(self) -> CachePlan:
        """Of the whole cache."""
        return self.cache.plan

    def read(self, sequences: Sequence[int]) -> torch.Tensor:
        """As `PrefixCache.read`."""
        return self.cache.read([self.numbers[sequence] for sequence in sequences])
