"""Files into checked rows of ours, batch by batch; what is to be said of them is known behind the last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from roma_ds.config.sources import ColumnsConfig
from roma_ds.data.files import Batch, RowFile, open_rows
from roma_ds.data.files.json_text import LINES
from roma_ds.data.shapes import Chosen, Misfit, Row, choose_shape, keys
from roma_ds.data.shapes.checks import SHOWN_PROBLEMS, check_rows, is_sound, refusal, row_problems
from roma_ds.data.shapes.options import counts_from_one
from roma_ds.errors import UserError

__all__ = ["FileAccount", "How", "Reading", "Row", "check_rows", "read_rows", "row_problems"]

_FIX = "mend these rows, or leave them out by data.on_bad_row=skip; docs/data.md has the shapes of rows"
_RENAME = (
    "name the key in columns, rename it to passage, put its text into question or prompt, or leave it out by "
    "columns.ignore"
)
NAMED = 1_000
"""Rows that are left out and named, at most."""
_SHORT = 200
"""Characters of a value that is shown as an example."""
_FILE = 1 << 40
"""Above the number of any row."""


@dataclass(frozen=True)
class How:
    """How rows are read."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    every_turn: bool = False
    """Whether every assistant turn of a conversation is an answer."""
    skip: bool = False
    """Whether malformed rows are left out; else they are refused."""
    first: int | None = None
    """Rows to read."""


@dataclass
class FileAccount:
    """What became of one file."""

    file: str
    kind: str
    shape: str = ""
    rows: int = 0
    """All of it."""
    example: dict[str, Any] = field(default_factory=dict)
    """Its first good row: `row` as the file has it, `read` as it is taken."""
    notes: list[str] = field(default_factory=list)


class Reading:
    """The rows of some files under one name."""

    def __init__(self, files: Sequence[RowFile], how: How) -> None:
        self._files, self._how = files, how
        self.accounts: list[FileAccount] = []
        self.problems: list[str] = []
        """What is wrong with malformed rows, each with its place; of the first of them."""
        self.bad = 0
        """How many rows are malformed."""
        self._taken: dict[int, int] = {}
        self._rows = 0
        self._lost: list[str] = []

    def batches(self) -> Iterator[list[Row]]:
        """Checked rows, with `id` as text.

        Raises UserError where a file is absent, unreadable or without rows, for rows of no shape that is
        known, and behind the last row for malformed ones: the first ten problems, each with its place.
        """
        for place, file in enumerate(self._files):
            left = None if self._how.first is None else self._how.first - self._rows
            if left != 0:
                yield from self._of_file(place, file, left)
        told = [*self._lost, *self.problems][:SHOWN_PROBLEMS]
        if self._lost:
            raise refusal(told, len(self._lost) + self.bad, f"{_RENAME}; {_FIX}")
        if self.bad and not self._how.skip:
            raise refusal(told, self.bad, _FIX)
        if self.bad == self._rows:
            raise refusal(told, self.bad, "give files with good rows: docs/data.md has their shapes")

    @property
    def notes(self) -> list[str]:
        """What is to be said of rows that are used."""
        return [note for account in self.accounts for note in account.notes]

    def _of_file(self, place: int, file: RowFile, left: int | None) -> Iterator[list[Row]]:
        batches = (batch for batch in file.batches() if batch.rows)
        if (head := next(batches, None)) is None:
            raise UserError(f"{file.name} holds no rows", LINES)
        dicts = [row for row in head.rows if isinstance(row, dict)]
        chosen = choose_shape(file.name, dicts, self._how.columns, self._how.every_turn)
        reader = _FileReader(self, place, file, chosen)
        if counts_from_one(map(chosen.ours, dicts)):
            reader.account.notes.append(
                f"{file.name}: no answer of the first rows is 0; answers count options from 0 here"
            )
        for batch in chain([head], batches):
            cut = batch if left is None else Batch(batch.rows[:left], batch.numbers, batch.halves)
            self._rows += len(cut.rows)
            yield reader.read(cut)
            if left is not None and (left := left - len(cut.rows)) <= 0:
                break
        self._lost += reader.close()
        self.accounts.append(reader.account)

    def spoil(self, place: str, messages: Sequence[str]) -> None:
        """Note a row that is malformed."""
        self.bad += 1
        if len(self.problems) < NAMED:
            self.problems += [f"{place}: {message}" for message in messages]

    def take(self, identity: str, file: int, number: int) -> tuple[int, int] | None:
        """Note an id; where it is taken, the number of the file and of the row that have it."""
        key = hash(identity)
        if (before := self._taken.setdefault(key, file * _FILE + number)) != file * _FILE + number:
            return divmod(before, _FILE)
        return None

    def name_of(self, file: int, number: int) -> str:
        """Where a row is, in words."""
        return self._files[file].place(number)


class _FileReader:
    """One file's rows in the shape that was found for it."""

    def __init__(self, reading: Reading, place: int, file: RowFile, chosen: Chosen) -> None:
        self._reading, self._place, self._file, self._chosen = reading, place, file, chosen
        self.account = FileAccount(file.name, file.kind, chosen.title)
        self._known = chosen.known
        self._unread: Counter[str] = Counter()
        self._lost: dict[str, list[int]] = {}
        self._without_id = self._also_elsewhere = 0

    def read(self, batch: Batch) -> list[Row]:
        """The good rows of a batch; the others are noted."""
        chosen, reading, known = self._chosen, self._reading, self._known
        read_as, setting, plain = chosen.shape.read, chosen.setting, chosen.is_plain
        good: list[Row] = []
        for number, raw in zip(batch.numbers, batch.rows, strict=False):
            if not isinstance(raw, dict):
                reading.spoil(self._file.place(number), list(row_problems(raw)))
                continue
            given = raw if plain else chosen.ours(raw)
            try:
                row = read_as(given, setting)
            except Misfit as misfit:
                reading.spoil(self._file.place(number), [str(misfit)])
                continue
            if not given.keys() <= known:
                self._note_unread(given, row, number)
            if "id" in given:
                identity = given["id"]
                row["id"] = str(identity) if type(identity) is int else identity
            else:
                self._without_id += 1
                row["id"] = f"{self._file.short}:{number}"
            if (batch.halves or not is_sound(row)) and (problems := list(row_problems(row))):
                reading.spoil(self._file.place(number), problems)
                continue
            if (before := reading.take(row["id"], self._place, number)) is not None and self._is_twice(
                row, number, *before
            ):
                continue
            if not good and not self.account.example:
                self.account.example = {"row": _shown(raw), "read": _shown(row)}
            good.append(row)
        self.account.rows += len(batch.rows)
        return good

    def close(self) -> list[str]:
        """Make the file's notes; what is wrong with keys that are not read, in words."""
        name, notes = self._file.name, self.account.notes
        if not self._chosen.is_ours:
            notes.append(f"{name}: {self.account.kind}, read as {self.account.shape}")
        if self._unread:
            listed = ", ".join(f"{key!r} ({count} rows)" for key, count in self._unread.items())
            notes.append(f"{name}: keys that are not read: {listed}")
        if self._without_id:
            by = "line" if self._file.lines else "number"
            made = f"their ids are made of the file's name and their {by}"
            notes.append(f"{name}: {self._without_id} rows without id; {made}")
        if self._also_elsewhere:
            notes.append(
                f"{name}: {self._also_elsewhere} rows have the id of a row in a file before; theirs have the "
                "file's name before them"
            )
        return [
            f"{self._file.place(first)}: {keys.told(key)}; {count} rows hold text under it"
            for key, (first, count) in self._lost.items()
        ]

    def _note_unread(self, given: dict[str, Any], row: Row, number: int) -> None:
        unread = keys.unread(given, self._known)
        self._unread.update(unread)
        for key in keys.lost(given, row, unread):
            self._lost.setdefault(key, [number, 0])[1] += 1

    def _is_twice(self, row: Row, number: int, file: int, before: int) -> bool:
        """Whether the row is malformed because another has its id; one of another file gives it a new one."""
        place, taken = self._file.place(number), self._reading.name_of(file, before)
        if file == self._place:
            self._reading.spoil(place, [f"the id {row['id']!r} is already taken by {taken}"])
            return True
        longer = f"{self._file.short}/{row['id']}"
        if (again := self._reading.take(longer, self._place, number)) is not None:
            taken = self._reading.name_of(*again)
            self._reading.spoil(place, [f"the id {longer!r} is already taken by {taken}"])
            return True
        row["id"] = longer
        self._also_elsewhere += 1
        return False


def read_rows(
    path: Path, say: Callable[[str], None] = lambda note: None, how: How | None = None
) -> list[Row]:
    """The rows of a data file in our own form, with `id` as text.

    say: is told what is not read, and where rows without id got one.

    Raises UserError where the file is absent, unreadable or without rows, and for malformed rows: the first
    ten problems at once, each with its place.
    """
    reading = Reading([open_rows(path)], how or How())
    rows = list(chain.from_iterable(reading.batches()))
    for note in reading.notes:
        say(note)
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _short(value) for key, value in islice(row.items(), 20)}


def _short(value: Any) -> Any:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= _SHORT:
        return json.loads(text)
    return (value if isinstance(value, str) else text)[: _SHORT - 3] + "..."


def _plain(value: Any) -> Any:
    return {"role": value.role, "content": value.content} if hasattr(value, "role") else str(value)
