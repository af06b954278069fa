"""Batches by number, from token ids or from cached hidden states, all of a cache or some of its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from roma_ds.prefix.cache_plan import CachePlan
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.sequences.batches import Batch, collate
from roma_ds.sequences.encoding import Encoded

FILLER = Encoded(-1, (0,), (0,), 0)
"""What a rank runs that has nothing left, where every forward pass is a collective."""


@dataclass(frozen=True)
class CachePart:
    """Reads as a cache in which sequence i is number `numbers[i]` of the whole one."""

    cache: PrefixCache
    numbers: Sequence[int]

    @property
    def plan(self) -> CachePlan:
        """Of the whole cache."""
        return self.cache.plan

    def read_once(self, sequences: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PrefixCache.read_once`."""
        return self.cache.read_once([self.numbers[sequence] for sequence in sequences])


@dataclass(frozen=True)
class Feed:
    """Sequences of which batches are made."""

    sequences: Sequence[Encoded]
    tokens: str
    """Prompt positions whose routing is read, as `roma.tokens`."""
    cache: PrefixCache | CachePart | None = None
    """Hidden states by sequence number, for a suffix network."""
    shared: bool = False
    """What sequences of a batch begin with in common is run once."""

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The sequences `numbers` in this order; without any, one token that counts for nothing."""
        chosen = [self.sequences[number] for number in numbers]
        batch = collate(chosen or [FILLER], self.tokens, self.shared)
        if self.cache is None:
            return batch
        plan = self.cache.plan
        if not numbers:
            return replace(batch, entering=torch.zeros(1, plan.hidden, dtype=plan.dtype))
        values, places = self.cache.read_once(numbers)
        rows = batch.joined(places)
        in_order = torch.equal(rows, torch.arange(len(values)))
        return replace(batch, entering=values if in_order else values[rows])
