"""What every kind of data file is read into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BATCH = 2_000
"""Rows that are in memory at once, about."""


@dataclass(frozen=True)
class Unreadable:
    """Stands where a row should be, with what is wrong there."""

    message: str


@dataclass(frozen=True)
class Batch:
    """Rows one behind the other."""

    rows: list[Any]
    """As the file has them: dicts; anything else, Unreadable too, is no row."""
    numbers: Sequence[int]
    """Of their lines, or of the rows themselves, from 1."""
    halves: bool = False
    """Whether a text may hold half of a surrogate pair."""


@dataclass(frozen=True)
class RowFile:
    """A file that was looked at and not read yet."""

    name: str
    """Its path, or what the hub calls it."""
    short: str
    """What ids made for its rows begin with."""
    kind: str
    """In words."""
    batches: Callable[[], Iterator[Batch]]
    """Its rows from the first; raises UserError where the file cannot be read."""
    lines: bool = True
    """Whether rows are numbered by their lines."""

    def place(self, number: int) -> str:
        """Where a row is, in words."""
        return f"{self.name}:{number}" if self.lines else f"{self.name}, row {number}"
