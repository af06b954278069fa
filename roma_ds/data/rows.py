"""Dataset rows: JSON lines read and checked, every problem with its line.

A row is one of
    {"id", "question", "choices": [text, ...], "answer": index}    options, letters or texts
    {"id", "question", "answer": text}                             free text
    {"id", "prompt", "answer": text}                               free text, the prompt taken verbatim
    {"id", "prompt", "choices": [...], "answer": index}            options, the prompt taken verbatim
with `passage`, `subject`, and for `prompt` rows `question`, as optional texts. Other keys are ignored.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.data.file_kinds import HEAD, refuse_other_kinds
from roma_ds.errors import UserError

Row = dict[str, Any]

MOST_CHOICES = 26
"""One for each letter."""
_SHOWN_PROBLEMS = 10
_FORM = '{"id": "1", "question": "...", "choices": ["...", "..."], "answer": 0}'
_LINES = f"put one JSON object on each line, such as {_FORM}"


@dataclass(frozen=True)
class Unreadable:
    """Stands where a row should be, with what is wrong there."""

    message: str


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file, gzipped or not, with `id` as text.

    Raises UserError where the file is absent, unreadable or without rows, and for malformed rows: the first
    ten problems at once, each with its line.
    """
    numbered = list(_lines(path))
    if not numbered:
        raise UserError(f"{path} holds no rows", _LINES)
    parsed = [(f"{path}:{number}", _parse(line)) for number, line in numbered]
    return check_rows(parsed, f"each line is one JSON object such as {_FORM}")


def check_rows(rows: Iterable[tuple[str, Any]], fix: str) -> list[Row]:
    """The rows of (place, row) pairs, with `id` as text.

    Raises UserError with the first ten problems, each with its place, when a row is malformed or Unreadable,
    or two rows have the same id.
    """
    checked: list[Row] = []
    problems: list[str] = []
    places: dict[str, str] = {}
    for place, row in rows:
        found = list(row_problems(row))
        problems += [f"{place}: {message}" for message in found]
        if found:
            continue
        identity = str(row["id"])
        if identity in places:
            problems.append(f"{place}: the id {identity!r} is already taken by {places[identity]}")
        places[identity] = place
        checked.append({**row, "id": identity})
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        tail = f"\nand {more} more" if more > 0 else ""
        raise UserError("\n".join(problems[:_SHOWN_PROBLEMS]) + tail, fix)
    return checked


def row_problems(row: Any) -> Iterator[str]:
    """What is wrong with one row, in words."""
    if isinstance(row, Unreadable):
        yield row.message
        return
    if not isinstance(row, dict):
        yield f"expected a JSON object, got {_shown(row)}"
        return
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        yield f"id must be a text or a whole number, got {_shown(identity)}" if "id" in row else "no id"
    if "prompt" not in row and "question" not in row:
        yield "neither question nor prompt"
    for key in ("prompt", "question"):
        if key in row and not _is_text(row[key]):
            yield f"{key} must be a text that is not blank, got {_shown(row[key])}"
    for key in ("passage", "subject"):
        if not isinstance(row.get(key, ""), str | None):
            yield f"{key} must be a text, got {_shown(row[key])}"
    if "answer" not in row:
        yield "no answer"
    elif row.get("choices") is None:
        if not _is_text(row["answer"]):
            yield f"without choices the answer must be a text, got {_shown(row['answer'])}"
    else:
        yield from _choice_problems(row["choices"], row["answer"])


def _choice_problems(choices: Any, answer: Any) -> Iterator[str]:
    if not isinstance(choices, list) or not all(_is_text(choice) for choice in choices):
        texts = choices if isinstance(choices, list) else []
        # What is shown of long texts may end before the one that is meant.
        bad = [str(number) for number, text in enumerate(texts, start=1) if not _is_text(text)]
        which = f"; number {', '.join(bad[:5])} is not" if bad else ""
        yield f"choices must be a list of texts that are not blank, got {_shown(choices)}{which}"
        return
    if not 2 <= len(choices) <= MOST_CHOICES:
        yield f"there must be 2 to {MOST_CHOICES} choices, got {len(choices)}"
    elif isinstance(answer, bool) or not isinstance(answer, int):
        yield f"answer must be the index of the right choice, 0 to {len(choices) - 1}, got {_shown(answer)}"
    elif not 0 <= answer < len(choices):
        yield f"answer {answer} is out of range: with {len(choices)} choices it is 0 to {len(choices) - 1}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Unreadable(f"not valid JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return Unreadable(f"not valid JSON: {error}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank."""
    number = 0
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as handle:
            refuse_other_kinds(path, handle.peek(HEAD)[:HEAD], packed)
            for number, line in enumerate(handle, start=1):
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield number, text
    except FileNotFoundError as error:
        raise UserError(f"the data file {path} does not exist", "check the path in the run config") from error
    except UnicodeDecodeError as error:
        if b"\0" in error.object:
            raise UserError(f"{path} is binary, and of no kind that is known here", _LINES) from error
        raise UserError(f"{path}:{number}: not UTF-8 text", "save the file as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip data after line {number}", "copy the file again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error
