"""Dataset rows: JSON lines read and checked, every problem with its line.

A row is one of
    {"id", "question", "choices": [text, ...], "answer": index}    options, letters or texts
    {"id", "question", "answer": text}                             free text
    {"id", "prompt", "answer": text}                               free text, the prompt taken verbatim
    {"id", "prompt", "choices": [...], "answer": index}            options, the prompt taken verbatim
with `passage`, `subject`, and for `prompt` rows `question`, as optional texts. `row_forms` has further forms.
Other keys are named, and refused where they hold what would be lost.
"""

from __future__ import annotations

import gzip
import json
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.data import row_keys
from roma_ds.data.file_kinds import HEAD, refuse_other_kinds
from roma_ds.data.row_forms import accepted
from roma_ds.errors import UserError
from roma_ds.storage import json_text

Row = dict[str, Any]

MOST_CHOICES = 26
"""One for each letter."""
_SHOWN_PROBLEMS = 10
_RENAME = "rename the key to passage, put its text into question or prompt, or delete it"
_FORM = '{"id": "1", "question": "...", "choices": ["...", "..."], "answer": 0}'
_LINES = f"put one JSON object on each line, such as {_FORM}"


@dataclass(frozen=True)
class Unreadable:
    """Stands where a row should be, with what is wrong there."""

    message: str


def read_rows(path: Path, say: Callable[[str], None] = lambda note: None) -> list[Row]:
    """The rows of a JSON-lines file, gzipped or not, in our own form, with `id` as text.

    say: is told what is not read, and where rows without id got one.

    Raises UserError where the file is absent, unreadable or without rows, and for malformed rows: the first
    ten problems at once, each with its line.
    """
    numbered = list(_lines(path))
    if not numbered:
        raise UserError(f"{path} holds no rows", _LINES)
    parsed = [(number, accepted(_parse(line))) for number, line in numbered]
    named = [(f"{path}:{number}", _identified(row, path, number)) for number, row in parsed]
    lost = list(_lost(path, parsed))
    fix = f"each line is one JSON object such as {_FORM}"
    checked = check_rows(named, f"{_RENAME}; {fix}" if lost else fix, lost)
    for note in _notes(path, [row for _, row in parsed]):
        say(note)
    return checked


def _identified(row: Any, path: Path, number: int) -> Any:
    return {"id": f"{path.name}:{number}", **row} if isinstance(row, dict) else row


def _lost(path: Path, rows: list[tuple[int, Any]]) -> Iterator[str]:
    """What is wrong with keys that are not read, once a key."""
    problems: dict[str, list[int]] = {}
    for number, row in rows:
        for problem in row_keys.lost(row) if isinstance(row, dict) else ():
            problems.setdefault(problem, []).append(number)
    for problem, numbers in problems.items():
        yield f"{path}:{numbers[0]}: {problem}; {len(numbers)} rows hold text under it"


def _notes(path: Path, rows: list[Row]) -> Iterator[str]:
    """What is to be said of rows that are used."""
    unread = Counter(key for row in rows for key in row_keys.unread(row))
    if unread:
        keys = ", ".join(f"{key!r} ({count} rows)" for key, count in unread.items())
        yield f"{path}: keys that are not read: {keys}"
    if missing := sum("id" not in row for row in rows):
        yield f"{path}: {missing} rows without id; their ids are made of the file's name and their line"


def check_rows(rows: Iterable[tuple[str, Any]], fix: str, known: Iterable[str] = ()) -> list[Row]:
    """The rows of (place, row) pairs, with `id` as text.

    Raises UserError with the first ten problems, each with its place, when a row is malformed or Unreadable,
    or two rows have the same id. known: problems found before.
    """
    checked: list[Row] = []
    problems = list(known)
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
    for key, value in row.items():
        if half := _half_pair(key) or _half_pair(value):
            yield f"{_shown(key)} holds {half}, half of a surrogate pair: write the whole character"
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
        if _is_index(row["answer"]) and _is_index(row.get("answerKey")) and row["answer"] != row["answerKey"]:
            yield f"answer names option {row['answer']} and answerKey option {row['answerKey']}, from 0"


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
    elif isinstance(answer, str):
        letters = f"A to {string.ascii_uppercase[len(choices) - 1]}"
        yield f"answer {_shown(answer)} is neither a letter from {letters} nor the text of one choice alone"
    elif isinstance(answer, bool) or not isinstance(answer, int):
        yield f"answer must be the index of the right choice, 0 to {len(choices) - 1}, got {_shown(answer)}"
    elif not 0 <= answer < len(choices):
        yield f"answer {answer} is out of range: with {len(choices)} choices it is 0 to {len(choices) - 1}"


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _half_pair(value: Any) -> str:
    """The first surrogate in the texts of `value`, escaped."""
    if isinstance(value, str):
        if value.isascii():
            return ""
        found = re.search("[\ud800-\udfff]", value)
        return f"\\u{ord(found[0]):04x}" if found else ""
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return next((half for half in map(_half_pair, inner) if half), "")
    return ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _parse(line: str) -> Any:
    try:
        return json_text.parse(line)
    except json.JSONDecodeError as error:
        return Unreadable(f"not valid JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
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
