"""Text in columns, CSV and TSV: every cell is a text, and an empty one is none."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from roma_ds.data.files.packed import Progress, faults, unpacked
from roma_ds.data.files.table import BATCH, Batch, RowFile, Unreadable
from roma_ds.errors import UserError

_LONGEST = 1 << 26
"""Characters that one cell may have."""
_SIGNS = ",;\t|"


def open_columns(path: Path, short: str, packing: str | None, tabs: bool) -> RowFile:
    """The file as rows. tabs: whether columns stand between tabs, else between the sign of the first line."""
    packed = f", {packing}" if packing else ""
    kind = f"{'TSV' if tabs else 'CSV'}{packed}"
    return RowFile(str(path), short, kind, partial(_batches, path, packing, tabs))


def _batches(path: Path, packing: str | None, tabs: bool) -> Iterator[Batch]:
    progress = Progress()
    with faults(path, packing, progress), unpacked(path, packing) as stream:
        # A line of the reader may hold line ends; they stay what they are.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        before = csv.field_size_limit(_LONGEST)
        try:
            yield from _rows(path, text, tabs, progress)
        except csv.Error as error:
            fix = "close every quotation mark, and write one inside a cell twice"
            raise UserError(f"{path}:{progress.line + 1}: no table of text: {error}", fix) from error
        finally:
            csv.field_size_limit(before)


def _rows(path: Path, text: io.TextIOWrapper, tabs: bool, progress: Progress) -> Iterator[Batch]:
    first = text.readline()
    sign = "\t" if tabs else max(_SIGNS, key=first.count)
    names = next(csv.reader([first], delimiter=sign, strict=True), [])
    names = [name.strip() for name in names]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path} has two columns of the name {twice[0]!r}", "rename one of them")
    reader = csv.reader(text, delimiter=sign, strict=True)
    progress.line = 1
    rows: list[Any] = []
    numbers: list[int] = []
    for cells in reader:
        # The number of a row is that of its first line.
        number, progress.line = progress.line + 1, reader.line_num + 1
        if cells:
            rows.append(_row(names, cells))
            numbers.append(number)
        if len(rows) == BATCH:
            yield Batch(rows, numbers)
            rows, numbers = [], []
    if rows:
        yield Batch(rows, numbers)


def _row(names: list[str], cells: list[str]) -> Any:
    if len(cells) != len(names) and any(cells[len(names) :]):
        return Unreadable(f"{len(cells)} cells under {len(names)} columns")
    return {name: cell for name, cell in zip(names, cells, strict=False) if cell and name}
