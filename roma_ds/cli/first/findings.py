"""What `roma-ds init --data` says of files and model, and the comments it puts into the config."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roma_ds.cli.first.draft import Draft
    from roma_ds.cli.subject import Subject
    from roma_ds.data.records import DatasetRecord
    from roma_ds.data.shapes.first_look import FirstLook

_SHOWN = 240
"""Characters of a row."""
_NO_TEST = (
    "No file to evaluate on was given, and a run does not split one off: nothing is measured. Name one, of",
    "questions that training does not see: [{name: mine, path: mine-test.jsonl}], or a known benchmark.",
)
_TEXTS = (
    "answers are texts: neighbours are samples whose answer greedy decoding yields token for token, which "
    "long ones seldom are; data.train[].judge=final judges what the model writes by its final answer instead"
)


def notes_of(made: Draft, subject: Subject) -> dict[str, list[str]]:
    """Comment lines of the config, by the key path that they stand above."""
    notes: dict[str, list[str]] = {}
    for key, records, looks in _parts(made, subject):
        for place, (record, look) in enumerate(zip(records, looks, strict=True)):
            lines = [_what(record), *(f"  {line}" for line in _taken(look))]
            # The name of a column may hold a line end.
            notes[f"{key}.{place}"] = [line.replace("\n", " ") for line in lines]
    if not made.run.eval.tasks:
        notes["eval.tasks"] = list(_NO_TEST)
    return notes


def findings(made: Draft, subject: Subject, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines on files, model and settings, and the commands that come next.

    found: what the looks of `roma-ds check` have said, by their names.
    """
    for key, records, looks in _parts(made, subject):
        for record, look in zip(records, looks, strict=True):
            yield f"{key}: {record.source}: {_what(record)}"
            yield from (f"  {line}" for line in _taken(look))
            yield from _example(record)
            yield from (f"  {line}" for line in _notes(record))
    if not made.run.eval.tasks:
        yield f"eval.tasks: {' '.join(_NO_TEST)}"
    for name in ("model", "prompts"):
        for line in found.get(name, ()):
            yield line if line.startswith(" ") else f"{name}: {line}"
    embed = made.run.embed
    yield f"embedding: {embed.model} reads {embed.text.replace('_', ' and ')}"
    if made.fallback:
        yield f"  {made.fallback} is not at hand"
    samples, count, notes = subject.trained
    yield f"samples: {count} to train on, {len(subject.evaluation)} to evaluate on"
    yield from (f"  {line}" for line in notes if " dropped because " in line or line.startswith("  "))
    if any(not sample.options for sample in samples):
        yield f"note: {_TEXTS}"
    yield f"next, with the config in {made.file}:"
    yield f"  roma-ds check {shlex.quote(made.file)}"
    yield f"  roma-ds run {shlex.quote(made.file)}"


def _parts(
    made: Draft, subject: Subject
) -> Iterator[tuple[str, list[DatasetRecord], list[FirstLook | None]]]:
    yield "data.train", subject.records, made.trained
    yield "eval.tasks", subject.evaluated_records, made.evaluated


def _what(record: DatasetRecord) -> str:
    """Kind, rows and shape of a dataset's files, on a line."""
    if not record.files:
        return f"{record.rows} rows"
    kinds = list(dict.fromkeys(file.kind for file in record.files))
    shapes = list(dict.fromkeys(file.shape for file in record.files))
    files = f"{len(record.files)} files, " if len(record.files) > 1 else ""
    return f"{files}{' and '.join(kinds)}, {record.rows} rows of the shape {' and '.join(shapes)}"


def _taken(look: FirstLook | None) -> list[str]:
    """What each column is taken for; columns of one meaning together."""
    columns: dict[str, list[str]] = {}
    for column, meaning in look.meanings.items() if look else ():
        columns.setdefault(meaning, []).append(repr(column))
    return [f"{', '.join(names)}: {meaning}" for meaning, names in columns.items()]


def _example(record: DatasetRecord) -> Iterator[str]:
    for file in [file for file in record.files if file.example][:1]:
        yield f"  one row: {_short(file.example['row'])}"
        yield f"  read as: {_short(file.example['read'])}"


def _notes(record: DatasetRecord) -> Iterator[str]:
    """What else the reading had to say, without what is said here already."""
    for note in [*record.notes, *record.left_out()]:
        if ", read as " not in note and "keys that are not read" not in note:
            yield note


def _short(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
