"""Hashes of any run of units in many texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from roma_ds.data.segments import WORD, Text

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_OTHER_BASE = 0xD1342543DE82EF95
_OTHER_INVERSE = pow(_OTHER_BASE, -1, 2**64)
_BYTES: Hashes = np.random.default_rng(0).integers(1, 2**64, 256, np.uint64, endpoint=False)
"""A number for each byte."""


class Windows:
    """Texts one behind the other. A run of units is given by its first place and the place behind its last.

    A run's hash is a polynomial over 64-bit hashes of its units, modulo 2^64: equal wherever the run stands.
    """

    def __init__(self, texts: Sequence[Text]) -> None:
        units, ends = _unit_hashes([text.spaced for text in texts])
        self.ends: Places = ends
        """By text, the place behind its last unit."""
        count = len(units)
        self.starts: Places = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        self._sums = np.zeros(count + 1, np.uint64)
        np.cumsum(units * _powers(_BASE, count), out=self._sums[1:])
        self._back = _powers(_INVERSE, count + 1)
        self._weights: Places | None = None
        if any(text.weights for text in texts):
            weights = chain.from_iterable(text.weights or [WORD] * len(text.units) for text in texts)
            self._weights = np.zeros(count + 1, np.int64)
            np.cumsum(np.fromiter(weights, np.int64, count), out=self._weights[1:])
        self.text_of: Places = np.repeat(np.arange(len(texts)), self.ends - self.starts)
        """By place, the number of its text."""

    def hashes(self, first: Places, behind: Places) -> Hashes:
        """Of the runs from `first` to `behind`."""
        return (self._sums[behind] - self._sums[first]) * self._back[first]

    def runs(self, weight: int) -> tuple[Places, Places]:
        """All runs within one text that just reach that weight: their first places and the places behind."""
        first = np.arange(len(self.text_of))
        if self._weights is None:
            behind = first + -(-weight // WORD)
        else:
            behind = np.searchsorted(self._weights, self._weights[:-1] + weight)
        whole = behind <= self.ends[self.text_of]
        return first[whole], behind[whole]


def _unit_hashes(texts: Sequence[bytes]) -> tuple[Hashes, Places]:
    """Hashes of all units, and by text how many there are up to its end. texts: units with spaces between.

    A unit's hash is a polynomial too, over numbers for its bytes.
    """
    signs = np.frombuffer(b" ".join([b"", *texts, b""]), np.uint8)
    inside = signs != ord(" ")
    first = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    behind = np.flatnonzero(inside[:-1] & ~inside[1:]) + 1
    sums = np.cumsum(np.take(_BYTES, signs) * _powers(_OTHER_BASE, len(signs)))
    hashes = (sums[behind - 1] - sums[first - 1]) * _powers(_OTHER_INVERSE, len(signs))[first]
    # Two multiplications keep units that are alike apart in all bits.
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    ends = np.cumsum(np.array([len(text) + 1 for text in texts], np.int64))
    return hashes, np.searchsorted(first, ends)


class Known:
    """A set of hashes that is asked for many at once."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes: Hashes = np.unique(hashes)
        bits = min(24, len(self.hashes).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._near = np.zeros(1 << bits, np.bool_)
        self._near[self._short(self.hashes)] = True

    def find(self, hashes: Hashes) -> tuple[Places, Places]:
        """Which of `hashes` are known, and the number of each of these among the known ones."""
        asked = np.flatnonzero(self._near[self._short(hashes)])
        if not len(self.hashes) or not len(asked):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        number = np.minimum(np.searchsorted(self.hashes, hashes[asked]), len(self.hashes) - 1)
        same = self.hashes[number] == hashes[asked]
        return asked[same], number[same]

    def _short(self, hashes: Hashes) -> NDArray[np.int64]:
        return (hashes >> self._shift).astype(np.int64)


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64."""
    known = _KNOWN_POWERS.get(base)
    if known is None or len(known) < count:
        known = np.full(max(count, 1 << 16), base, np.uint64)
        known[0] = 1
        known = np.multiply.accumulate(known)
        _KNOWN_POWERS[base] = known
    return known[:count]


_KNOWN_POWERS: dict[int, Hashes] = {}
"""By base, as far as they were asked for."""
