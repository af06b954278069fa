"""Sequences laid one after the other without padding.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from roma_ds.sequences.shared_attention import Sharing
from roma_ds.sequences.token_tree import TokenTree
from roma_ds.sequences.tree_cache import TreeCache


class Past:
    """Keys and values of a batch, kept by a first pass so that later ones run some of its tokens only.

    Of no use where something before these tokens changes between the passes.
    """

    def __init__(self, grows: bool = False) -> None:
        """grows: keep what later passes run as well, without gradient, so that each goes on from the last."""
        self.grows = grows
        self.again: torch.Tensor | None = None
        """int64 [R], indices into T: tokens that are run again; None in the first pass, which keeps all"""
        self._kept: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def with_earlier(
        self, module: object, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [1, h, T, d] that an attention module sees, given those of the tokens run."""
        if self.again is None:
            self._kept[module] = (key.detach(), value.detach())
            return key, value
        keys, values = self._kept[module]
        if self.grows:
            return keys.index_copy_(2, self.again, key), values.index_copy_(2, self.again, value)
        return keys.index_copy(2, self.again, key), values.index_copy(2, self.again, value)


@dataclass(frozen=True)
class Packing:
    """Where each of T tokens belongs, and which of them are needed after the last layer."""

    lengths: tuple[int, ...]
    slots: torch.Tensor
    """int64 [T], the token's place in a padded [B * L]"""
    row_counts: tuple[int, ...]
    """Of each sequence, how many of its tokens are needed after the last layer: at least one."""
    rows: torch.Tensor
    """int64 [R], ascending: the tokens whose last hidden state or last routing is read"""
    row_slots: torch.Tensor
    """int64 [R], the needed row's place in a padded [B * most needed rows of a sequence]"""
    row_of: torch.Tensor
    """int64 [T], the token's number among `rows`, -1 where it is not needed"""
    row_mask: torch.Tensor
    """bool [B, 1, most needed rows, L], which keys a needed row sees"""
    past: Past | None = None
    """What an earlier pass over the same sequences kept, or where this one keeps it."""
    sharing: Sharing | None = None
    """Where sequences share tokens: who sees whom. Lengths, slots and masks are then of no use."""
    cache: TreeCache | None = None
    """What keeps keys and values of sequences that are gone on with."""

    def to(self, device: torch.device) -> Packing:
        """The same on `device`."""
        names = ("slots", "rows", "row_slots", "row_of", "row_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(lengths: Sequence[int], needed: torch.Tensor) -> Packing:
    """The packing of sequences of `lengths` tokens; `needed`: int64 indices into T, in any order."""
    longest, total = max(lengths), sum(lengths)
    sizes = torch.tensor(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    starts = sizes.cumsum(0) - sizes
    position = torch.arange(total) - starts[sequence]
    rows = torch.unique(needed)
    counts = torch.bincount(sequence[rows], minlength=len(lengths))
    most = int(counts.max())
    turn = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[sequence[rows]]
    row_slots = sequence[rows] * most + turn
    row_of = torch.full((total,), -1, dtype=torch.long)
    row_of[rows] = torch.arange(len(rows))
    # Padded rows see the first key: a row that sees none would be NaN.
    last_seen = torch.zeros(len(lengths) * most, dtype=torch.long)
    last_seen[row_slots] = position[rows]
    mask = torch.arange(longest) <= last_seen.reshape(len(lengths), 1, most, 1)
    return Packing(
        tuple(lengths),
        sequence * longest + position,
        tuple(counts.tolist()),
        rows,
        row_slots,
        row_of,
        mask,
    )


def pack_shared(tree: TokenTree, needed: torch.Tensor, cache: TreeCache | None = None) -> Packing:
    """The packing of sequences that share tokens; `needed`: int64 indices into T, in any order.

    cache: what keeps the keys and values.
    """
    rows = torch.unique(needed)
    row_of = torch.full((len(tree.ids),), -1, dtype=torch.long)
    row_of[rows] = torch.arange(len(rows))
    none = torch.zeros(0, dtype=torch.long)
    sharing = Sharing(tree, rows)
    return Packing((), none, (), rows, none, row_of, none.bool(), sharing=sharing, cache=cache)


def pack_newest(cache: TreeCache) -> Packing:
    """The packing of one further token of each sequence that a cache keeps what was before of."""
    every = torch.arange(len(cache.positions))
    none = torch.zeros(0, dtype=torch.long)
    return Packing((), none, (), every, none, every, none.bool(), cache=cache)
