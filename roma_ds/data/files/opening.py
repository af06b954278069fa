"""A data file of any kind, opened by what its first bytes say and, for text in columns, its name."""

from __future__ import annotations

from pathlib import Path

from roma_ds.data.files import columns_text, json_text, tables
from roma_ds.data.files.kinds import refuse_other_kinds
from roma_ds.data.files.packed import ENDINGS, head_of, packing_of
from roma_ds.data.files.table import RowFile

SEPARATED = (".csv", ".tsv", ".tab")
"""What names of text in columns end in."""


def open_rows(path: Path, short: str | None = None) -> RowFile:
    """The file, looked at. short: what ids made for its rows begin with, if not its name.

    Raises UserError where it is absent, cannot be read, or is of a kind that has no rows to read.
    """
    short = short or path.name
    packing = packing_of(path)
    head = head_of(path, packing)
    if packing is None and (opened := tables.open_table(path, short, head)) is not None:
        return opened
    refuse_other_kinds(path, head, packing)
    if ending_of(path) in SEPARATED:
        return columns_text.open_columns(path, short, packing, ending_of(path) != ".csv")
    return json_text.open_json(path, short, packing, head)


def ending_of(path: Path) -> str:
    """What the name ends in, without how it is packed."""
    name = path.name.lower()
    ending = next((end for end in ENDINGS if name.endswith(end)), "")
    return Path(name.removesuffix(ending)).suffix
