"""How the tokens of a batch lie in a network's tensors: one after the other, or in rows of one length.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from roma_ds.sequences.packing import Packing


@dataclass(frozen=True)
class Placement:
    """One batch in a network whose tensors are [1, T, ...], or with `by_rows` [B, L, ...]."""

    packing: Packing
    positions: torch.Tensor
    """int64 [T], the token's place in its sequence"""
    by_rows: bool

    @property
    def shape(self) -> tuple[int, int]:
        """The first two dimensions of the network's tensors."""
        lengths = self.packing.lengths
        return (len(lengths), max(lengths)) if self.by_rows else (1, len(self.positions))

    def laid(self, values: torch.Tensor) -> torch.Tensor:
        """Values [T, ...] as the network has them; 0 where there is no token."""
        rows, length = self.shape
        if not self.by_rows or rows * length == len(values):
            return values.reshape(rows, length, *values.shape[1:])
        room = values.new_zeros(rows * length, *values.shape[1:])
        return room.index_copy(0, self.packing.slots, values).reshape(rows, length, *values.shape[1:])

    def tokens(self, values: torch.Tensor) -> torch.Tensor:
        """The network's [.., .., ...], or the same with the two flattened, as [T, ...]."""
        rows, length = self.shape
        inner = values.shape[2:] if tuple(values.shape[:2]) == self.shape else values.shape[1:]
        flat = values.reshape(rows * length, *inner)
        return flat[self.packing.slots] if self.by_rows and rows * length != len(self.positions) else flat

    def places(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Where tokens, by their numbers in T, lie in the flattened two dimensions; by default all."""
        if not self.by_rows:
            return torch.arange(len(self.positions)) if tokens is None else tokens
        return self.packing.slots if tokens is None else self.packing.slots[tokens]

    def inputs(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """The arguments of a transformers model that reads these tokens, int64 [T]."""
        if not self.by_rows:
            return {
                "input_ids": input_ids[None],
                "position_ids": self.positions[None],
                "packing": self.packing,
            }
        # Behind a sequence the positions go on, as if there were tokens: nothing sees them.
        rows, length = self.shape
        every = torch.arange(length, device=input_ids.device).expand(rows, length)
        mask = self.laid(torch.ones_like(input_ids))
        return {"input_ids": self.laid(input_ids), "position_ids": every, "attention_mask": mask}
