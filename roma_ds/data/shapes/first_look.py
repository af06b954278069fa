"""Files at first sight: the shape of their first rows, and columns for those that have no shape we know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.config.sources import ColumnsConfig, Paths
from roma_ds.data.files import find_files
from roma_ds.data.shapes.detection import QUESTION, Chosen, UnknownShape, choose_shape
from roma_ds.data.shapes.guess import guessed_columns, option_group
from roma_ds.data.shapes.meaning import NOT_READ, meanings
from roma_ds.errors import UserError

SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
"""Of a folder, in the order in which one is taken to evaluate on."""


@dataclass(frozen=True)
class FirstLook:
    """What the first rows of a file say."""

    columns: ColumnsConfig
    """As given, and what of it was guessed."""
    meanings: dict[str, str]
    """Its columns, each with what it is taken for."""
    conversations: bool
    """Whether its rows are turns of a chat."""


def look_at(
    paths: Paths, split: str, columns: ColumnsConfig, every_turn: bool = False, key: str = "data.train.0"
) -> FirstLook:
    """The first rows of the first of some files.

    key: of the config, whose entry they are.
    Raises UserError where it cannot be read, has no rows, or its columns cannot be told apart.
    """
    found = find_files(paths if isinstance(paths, tuple) else (paths,), split)
    file = found[0].open()
    head = next((batch.rows for batch in file.batches() if batch.rows), [])
    if not head:
        raise UserError(f"{file.name} holds no rows", "give a file with rows: docs/data.md has their shapes")
    # What is no row is named where all of them are read.
    rows = [row for row in head if isinstance(row, dict)]
    try:
        chosen = _chosen(file.name, rows, columns, every_turn)
    except UnknownShape as unknown:
        names = ", ".join(map(repr, dict.fromkeys(name for row in rows for name in row))) or "none"
        raise UnknownShape(
            f"{file.name}: which column is question and which is answer cannot be told; they are {names}",
            f"name them, as in {key}.columns={{question: query, answer: response}} (docs/data.md)",
        ) from unknown
    keys = dict.fromkeys(name for row in rows for name in row)
    return FirstLook(chosen.setting.columns, meanings(chosen, keys), chosen.shape.name == "conversation")


def held_out_split(path: str, split: str) -> str | None:
    """A split of a folder to evaluate on, where it has splits and is trained on `split`."""
    training = find_files((path,), split)
    for other in SPLITS:
        try:
            files = find_files((path,), other)
        except UserError:
            continue
        if not set(files) & set(training):
            return other
    return None


def _chosen(name: str, rows: Sequence[dict[str, Any]], columns: ColumnsConfig, every_turn: bool) -> Chosen:
    try:
        chosen = choose_shape(name, rows, columns, every_turn)
    except UnknownShape:
        return _guessed(name, rows, columns, every_turn)
    keys = {key for row in rows for key in row}
    left = [key for key, meaning in meanings(chosen, keys).items() if meaning == NOT_READ]
    named = {chosen.renamed.get(key, key) for key in keys}
    listed = "choices" in named or chosen.setting.options.columns
    if chosen.shape is QUESTION and not listed and option_group(left):
        return _guessed(name, rows, columns, every_turn)
    return chosen


def _guessed(name: str, rows: Sequence[dict[str, Any]], columns: ColumnsConfig, every_turn: bool) -> Chosen:
    return _counted(name, rows, choose_shape(name, rows, guessed_columns(rows, columns), every_turn))


def _counted(name: str, rows: Sequence[dict[str, Any]], chosen: Chosen) -> Chosen:
    """Raises UserError where options are counted from 1 and answers are such numbers."""
    options = chosen.setting.options.columns
    answers = {str(row.get("answer", "")).strip() for row in map(chosen.ours, rows)}
    if options and options[0].endswith("1") and all(answer.isdecimal() for answer in answers):
        raise UserError(
            f"{name}: its options are {', '.join(options)} and its answers numbers, which are counted from 0 "
            "here",
            "write the option's letter or its text as the answer",
        )
    return chosen
