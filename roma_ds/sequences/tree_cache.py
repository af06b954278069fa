"""Keys and values of sequences that are gone on with, those of tokens that several share kept once.

Shapes: B sequences, T tokens of their tree, h key heads, d head size, S tokens of a shared run, W tokens that
a sequence has for itself, D places in a sequence that shared runs reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from roma_ds.sequences.token_tree import TokenTree

WORTH = 64
"""Keys that sharing saves from being read in every step, for a call of its own to pay; fewer are copied."""
ROOM = 32
"""New tokens that there is room for before keys are moved."""


@dataclass(frozen=True)
class SharedRun:
    """Tokens in a row that several sequences follow."""

    first: int
    """Place among T."""
    stop: int
    depth: int
    """Place in each of the sequences."""
    low: int
    """The first of its sequences; these are next to each other."""
    high: int
    """Behind the last of them."""

    @property
    def columns(self) -> slice:
        """Places in the sequences."""
        return slice(self.depth, self.depth + self.stop - self.first)


class TreeCache:
    """What attention keeps of a batch of sequences: first of their tree, then of one token each a step.

    Sequences are in the order of the tree, see `order`. Attention modules are told apart by what they are.
    """

    def __init__(self, tree: TokenTree) -> None:
        self.order = sorted(range(len(tree.leaves)), key=tree.leaves.__getitem__)
        """By place in this cache, the sequence's number in the tree."""
        leaves = [tree.leaves[number] for number in self.order]
        self.runs = _shared_runs(tree, leaves)
        paths = [tree.path(leaf) for leaf in leaves]
        shared = torch.zeros(len(tree.ids), dtype=torch.bool)
        for run in self.runs:
            shared[run.first : run.stop] = True
        alone = [path[~shared[path]] for path in paths]
        self.width = max(map(len, alone))
        """W"""
        self.begun = False
        """Whether the tree has been run."""
        positions = tree.positions()
        # Padded on the left, so that the new tokens of all lie behind each other.
        self._places = torch.zeros(len(alone), self.width, dtype=torch.long)
        self._own_positions = torch.full((len(alone), self.width), -1, dtype=torch.long)
        for row, places in enumerate(alone):
            if len(places):
                self._places[row, -len(places) :] = places
                self._own_positions[row, -len(places) :] = positions[places]
        self.positions = torch.tensor([len(path) - 1 for path in paths])
        """int64 [B], the place in its sequence of the token that was run last"""
        self._keys: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}
        self._shared: dict[object, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._hidden: dict[tuple[int | None, torch.device], torch.Tensor] = {}

    @property
    def depth(self) -> int:
        """D"""
        return max((run.columns.stop for run in self.runs), default=0)

    @property
    def room(self) -> int:
        """Tokens that keys and values are held of or have room for, those of all sequences together."""
        own = next(iter(self._keys.values()), (torch.zeros(0, 1, 0, 1),))[0]
        return own.shape[0] * own.shape[2] + sum(run.stop - run.first for run in self.runs)

    @property
    def kept_bytes(self) -> int:
        """Of keys and values."""
        pairs = [*self._keys.values(), *(pair for pairs in self._shared.values() for pair in pairs)]
        return sum(one.numel() * one.element_size() for pair in pairs for one in pair)

    def keep(self, module: object, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take the keys and values [1, h, T, d] of the tree in an attention module."""
        parts = (key[0].detach(), value[0].detach())
        self._shared[module] = [
            (parts[0][:, run.first : run.stop].clone(), parts[1][:, run.first : run.stop].clone())
            for run in self.runs
        ]
        places = self._places.to(key.device)
        own = [_with_room(part[:, places].transpose(0, 1)) for part in parts]
        self._keys[module] = (own[0], own[1])

    def step(self) -> None:
        """Begin a pass over one further token of every sequence."""
        self.begun = True
        self.positions = self.positions + 1
        self._own_positions = torch.cat((self._own_positions, self.positions[:, None]), dim=1)
        self.width += 1
        self._hidden.clear()

    def add(
        self, module: object, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Take those of the newest tokens, [1, h, B, d].

        Returns keys and values [B, h, W, d] that each sequence has for itself, and [h, S, d] of each run.
        """
        keys, values = self._keys[module]
        if keys.shape[2] < self.width:
            keys, values = self._keys[module] = (_with_room(keys), _with_room(values))
        keys[:, :, self.width - 1] = key[0].transpose(0, 1)
        values[:, :, self.width - 1] = value[0].transpose(0, 1)
        return keys[:, :, : self.width], values[:, :, : self.width], self._shared[module]

    def hidden(self, window: int | None, device: torch.device) -> torch.Tensor:
        """bool [B, D + W], the places in shared runs and own tokens that the newest token does not see.

        window: most keys that it sees, its own among them.
        """
        if (window, device) not in self._hidden:
            self._hidden[window, device] = self._made_hidden(window).to(device)
        return self._hidden[window, device]

    def _made_hidden(self, window: int | None) -> torch.Tensor:
        seen = torch.zeros(len(self.positions), self.depth, dtype=torch.bool)
        for run in self.runs:
            seen[run.low : run.high, run.columns] = True
        places = torch.arange(self.depth).expand(len(self.positions), -1)
        seen = torch.cat((seen, self._own_positions >= 0), dim=1)
        if window:
            places = torch.cat((places, self._own_positions), dim=1)
            seen &= places > self.positions[:, None] - window
        return ~seen

    def stay(self, rows: Sequence[int]) -> None:
        """Go on with these sequences alone, by their places, ascending; what the others had is given back."""
        chosen = torch.tensor(rows, dtype=torch.long)
        self.order = [self.order[row] for row in rows]
        self._places, self._own_positions = self._places[chosen], self._own_positions[chosen]
        self.positions = self.positions[chosen]
        for module, pair in self._keys.items():
            keys, values = (one.index_select(0, chosen.to(one.device)) for one in pair)
            self._keys[module] = (keys, values)
        ranges = [torch.searchsorted(chosen, torch.tensor([run.low, run.high])).tolist() for run in self.runs]
        there = [number for number, (low, high) in enumerate(ranges) if low < high]
        self.runs = [
            replace(self.runs[number], low=ranges[number][0], high=ranges[number][1]) for number in there
        ]
        for module, pairs in self._shared.items():
            self._shared[module] = [pairs[number] for number in there]
        self._hidden.clear()


def _shared_runs(tree: TokenTree, leaves: Sequence[int]) -> list[SharedRun]:
    """Segments that are worth being kept once; leaves: ascending, by sequence the segment that it ends in."""
    ends = list(range(1, len(tree.segments) + 1))
    for number in range(len(tree.segments) - 1, -1, -1):
        parent = tree.segments[number].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[number])
    own = torch.tensor(leaves)
    lows = torch.searchsorted(own, torch.arange(len(tree.segments))).tolist()
    highs = torch.searchsorted(own, torch.tensor(ends)).tolist()
    return [
        SharedRun(segment.first, segment.stop, segment.depth, low, high)
        for segment, low, high in zip(tree.segments, lows, highs, strict=True)
        if (high - low - 1) * (segment.stop - segment.first) >= WORTH
    ]


def _with_room(values: torch.Tensor) -> torch.Tensor:
    """[B, h, W, d] with room for ROOM more tokens behind."""
    sequences, heads, width, size = values.shape
    room = values.new_empty(sequences, heads, width + ROOM, size)
    room[:, :, :width] = values
    return room
