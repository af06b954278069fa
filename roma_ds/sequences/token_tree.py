"""Sequences of token ids as a tree: what several of them begin with is there once.

Shapes: B sequences, T tokens in all, each of those that sequences share counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch

LEAST_SHARED = 8
"""Tokens at the beginning of sequences that are worth being shared: `Question:` is not."""


@dataclass(frozen=True)
class Segment:
    """Tokens in a row that the same sequences share."""

    first: int
    """Place among T; those of the others follow."""
    stop: int
    depth: int
    """Tokens before it in each of its sequences."""
    parent: int
    """The segment before it, -1 where a sequence begins."""


@dataclass(frozen=True)
class TokenTree:
    """B sequences of token ids, depth first."""

    ids: tuple[int, ...]
    """[T]"""
    segments: tuple[Segment, ...]
    """Ordered by `first`; together all of T."""
    leaves: tuple[int, ...]
    """By sequence, the segment that it ends in."""

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """By segment, those right behind it."""
        found: list[list[int]] = [[] for _ in self.segments]
        for number, segment in enumerate(self.segments):
            if segment.parent >= 0:
                found[segment.parent].append(number)
        return tuple(map(tuple, found))

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """By segment, the place behind the last token below it."""
        found = [segment.stop for segment in self.segments]
        for number in range(len(found) - 1, -1, -1):
            parent = self.segments[number].parent
            if parent >= 0:
                found[parent] = max(found[parent], found[number])
        return tuple(found)

    @property
    def is_shared(self) -> bool:
        """Whether a token is there that more than one sequence has."""
        return len(set(self.leaves)) < len(self.leaves) or any(self.children)

    def positions(self) -> torch.Tensor:
        """int64 [T], the token's place in its sequences"""
        ranges = [torch.arange(one.depth, one.depth + one.stop - one.first) for one in self.segments]
        return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.long)

    def path(self, segment: int) -> torch.Tensor:
        """int64 [tokens], where the tokens from the beginning to the end of a segment lie in T."""
        parts = []
        while segment >= 0:
            one = self.segments[segment]
            parts.append(torch.arange(one.first, one.stop))
            segment = one.parent
        return torch.cat(parts[::-1]) if parts else torch.zeros(0, dtype=torch.long)


def shared_length(one: Sequence[int], other: Sequence[int], known: int = 0) -> int:
    """Tokens that two sequences begin with in common; `known`: so many of them for sure."""
    low, high = known, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        # Slices are compared by the interpreter, many times as fast as tokens one by one.
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def tree_of(sequences: Sequence[tuple[int, ...]], least: int = LEAST_SHARED) -> TokenTree:
    """The tree of sequences of at least one token each.

    least: sequences that begin with fewer tokens in common stay apart from the beginning on.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ids: list[int] = []
    segments: list[Segment] = []
    leaves = [-1] * len(sequences)
    # Members that begin with the same `known` tokens, `depth` of them in segments, and the last of these.
    waiting = [(order, 0, 0, -1)] if order else []
    while waiting:
        members, known, depth, segment = waiting.pop()
        first, last = sequences[members[0]], sequences[members[-1]]
        stop = shared_length(first, last, known)
        # Equal sequences are shared whatever their length.
        if depth or stop >= least or first == last:
            segments.append(Segment(len(ids), len(ids) + stop - depth, depth, segment))
            segment = len(segments) - 1
            ids.extend(first[depth:stop])
            depth = stop
        # In their order those that end here come first.
        ended = sum(len(sequences[member]) == stop for member in members)
        branches = groupby(members[ended:], key=lambda member: sequences[member][stop])
        parts = [list(branch) for _, branch in branches]
        if depth < stop:
            parts += [members[:ended]] if ended else []
        for member in members[:ended] if depth == stop else ():
            leaves[member] = segment
        waiting.extend((part, stop, depth, segment) for part in sorted(parts, key=min, reverse=True))
    return TokenTree(tuple(ids), tuple(segments), tuple(leaves))
