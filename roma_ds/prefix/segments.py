"""What the sequences of a cache consist of: runs of tokens, each of them there once.

Shapes: B sequences, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from roma_ds.sequences.batches import read_ids
from roma_ds.sequences.encoding import Encoded
from roma_ds.sequences.token_tree import tree_of


@dataclass(frozen=True, eq=False)
class Segments:
    """B sequences, each of which is one segment after another, from one that has no parent to its end.

    Raises ValueError where lengths, parents and ends contradict each other.
    """

    lengths: NDArray[np.int64]
    """[S], tokens of each"""
    parents: NDArray[np.int32]
    """[S], the segment before it, of a smaller number; -1 where sequences begin"""
    ends: NDArray[np.int32]
    """[B], the segment that a sequence ends in"""

    def __post_init__(self) -> None:
        lengths, parents, ends = self.lengths, self.parents, self.ends
        if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 0).any():
            raise ValueError("lengths are no list of whole numbers from 0")
        if parents.dtype != np.int32 or ends.dtype != np.int32 or parents.shape != lengths.shape:
            raise ValueError("not one parent for each of the lengths")
        if (parents < -1).any() or (parents >= np.arange(len(parents))).any():
            raise ValueError("a segment does not follow its parent")
        if (ends < 0).any() or (ends >= len(lengths)).any():
            raise ValueError("a sequence ends in no segment of these lengths")
        used = np.zeros(len(lengths), np.bool_)
        used[ends] = True
        used[parents[parents >= 0]] = True
        if not used.all():
            raise ValueError("a segment lies in no sequence")

    @classmethod
    def alone(cls, lengths: Sequence[int] | NDArray[np.int64]) -> Segments:
        """Each sequence one segment. lengths: tokens of each."""
        tokens = np.array(lengths, np.int64)
        count = len(tokens)
        return cls(tokens, np.full(count, -1, np.int32), np.arange(count, dtype=np.int32))

    @classmethod
    def of(cls, sequences: Sequence[Encoded], shared: bool) -> Segments:
        """Of what a network reads of `sequences`; shared: what they begin with in common is there once."""
        tree = tree_of([read_ids(sequence) for sequence in sequences]) if shared else None
        if tree is None or not tree.is_shared:
            return cls.alone([sequence.length for sequence in sequences])
        return cls(
            np.array([segment.stop - segment.first for segment in tree.segments], np.int64),
            np.array([segment.parent for segment in tree.segments], np.int32),
            np.array(tree.leaves, np.int32),
        )

    @cached_property
    def is_flat(self) -> bool:
        """Whether segment i is sequence i, and nothing is shared."""
        count = len(self.lengths)
        return bool((self.parents == -1).all()) and np.array_equal(self.ends, np.arange(count))

    @cached_property
    def sequence_lengths(self) -> NDArray[np.int64]:
        """[B], tokens of each sequence"""
        totals = self.lengths.tolist()
        for segment, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                totals[segment] += totals[parent]
        found: NDArray[np.int64] = np.array(totals, np.int64)[self.ends]
        return found

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """[S], the first of the sequences that a segment lies in: its values are taken from that one."""
        found = np.full(len(self.lengths), len(self.ends), np.int64)
        np.minimum.at(found, self.ends, np.arange(len(self.ends)))
        first, parents = found.tolist(), self.parents.tolist()
        for segment in range(len(first) - 1, -1, -1):
            parent = parents[segment]
            if parent >= 0:
                first[parent] = min(first[parent], first[segment])
        return np.array(first, np.int64)

    @property
    def tokens(self) -> int:
        """Of all segments."""
        return int(self.lengths.sum())

    @property
    def tokens_asked(self) -> int:
        """Of all sequences, those that are shared counted for each."""
        return int(self.sequence_lengths.sum())

    @property
    def links(self) -> int:
        """Numbers in the file that says how segments follow each other; none where nothing is shared."""
        return 0 if self.is_flat else len(self.parents) + len(self.ends)

    def path(self, sequence: int) -> list[int]:
        """The segments of a sequence in their order."""
        found = []
        segment = int(self.ends[sequence])
        while segment >= 0:
            found.append(segment)
            segment = int(self.parents[segment])
        return found[::-1]

    def once(self, sequences: Sequence[int]) -> tuple[dict[int, int], NDArray[np.int64]]:
        """The segments of these sequences, each once, and where the sequences' tokens are among theirs.

        Of each segment, in the order in which they come first, the sequence that brings it; int64 [sum of
        lengths], places among the tokens of these segments, of one sequence after the other.
        """
        paths = [self.path(sequence) for sequence in sequences]
        brought: dict[int, int] = {}
        for sequence, path in zip(sequences, paths, strict=True):
            for segment in path:
                brought.setdefault(segment, sequence)
        lengths = self.lengths[list(brought)].tolist()
        stops = dict(zip(brought, accumulate(lengths), strict=True))
        rows = [
            np.arange(stops[segment] - int(self.lengths[segment]), stops[segment], dtype=np.int64)
            for path in paths
            for segment in path
        ]
        return brought, np.concatenate([np.zeros(0, np.int64), *rows])

    def same(self, other: Segments) -> bool:
        """Whether the same sequences are cut in the same way."""
        return all(
            np.array_equal(mine, its)
            for mine, its in (
                (self.lengths, other.lengths),
                (self.parents, other.parents),
                (self.ends, other.ends),
            )
        )
