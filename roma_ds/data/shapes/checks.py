"""What is wrong with rows in our own form, every problem with its place."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from typing import Any

from roma_ds.data.files.table import Unreadable
from roma_ds.data.message import Message
from roma_ds.data.shapes.row import Row, is_text, shown
from roma_ds.errors import UserError

MOST_CHOICES = 26
"""One for each letter."""
SHOWN_PROBLEMS = 10


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
        raise refusal(problems[:SHOWN_PROBLEMS], len(problems), fix)
    return checked


def refusal(problems: list[str], count: int, fix: str) -> UserError:
    """The error that shows `problems`, the first of `count`."""
    more = count - len(problems)
    tail = f"\nand {more} more" if more > 0 else ""
    return UserError("\n".join(problems) + tail, fix)


def is_sound(row: Row) -> bool:
    """Whether a row has no problem, halves of surrogate pairs aside; quick, and False where not sure."""
    answer, choices = row.get("answer"), row.get("choices")
    if "messages" in row:
        return is_text(row.get("id")) and is_text(row["question"]) and is_text(answer)
    if not is_text(row.get("id")) or not (is_text(row.get("question")) or "question" not in row):
        return False
    if "prompt" in row:
        if not is_text(row["prompt"]):
            return False
    elif "question" not in row:
        return False
    for key in ("passage", "subject"):
        if row.get(key) is not None and type(row[key]) is not str:
            return False
    if choices is None:
        return is_text(answer)
    if type(choices) is not list or not 2 <= len(choices) <= MOST_CHOICES or not all(map(is_text, choices)):
        return False
    return type(answer) is int and 0 <= answer < len(choices) and "answerKey" not in row


def row_problems(row: Any) -> Iterator[str]:
    """What is wrong with one row, in words."""
    if isinstance(row, Unreadable):
        yield row.message
        return
    if not isinstance(row, dict):
        yield f"expected a JSON object, got {shown(row)}"
        return
    for key, value in row.items():
        if half := _half_pair(key) or _half_pair(value):
            yield f"{shown(key)} holds {half}, half of a surrogate pair: write the whole character"
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        yield f"id must be a text or a whole number, got {shown(identity)}" if "id" in row else "no id"
    if "prompt" not in row and "question" not in row:
        yield "neither question nor prompt"
    for key in ("prompt", "question"):
        if key in row and not is_text(row[key]):
            yield f"{key} must be a text that is not blank, got {shown(row[key])}"
    for key in ("passage", "subject"):
        if not isinstance(row.get(key, ""), str | None):
            yield f"{key} must be a text, got {shown(row[key])}"
    if "answer" not in row:
        yield "no answer"
    elif row.get("choices") is None:
        if not is_text(row["answer"]):
            yield f"without choices the answer must be a text, got {shown(row['answer'])}"
    else:
        yield from _choice_problems(row["choices"], row["answer"])
        if _is_index(row["answer"]) and _is_index(row.get("answerKey")) and row["answer"] != row["answerKey"]:
            yield f"answer names option {row['answer']} and answerKey option {row['answerKey']}, from 0"


def _choice_problems(choices: Any, answer: Any) -> Iterator[str]:
    if not isinstance(choices, list) or not all(is_text(choice) for choice in choices):
        texts = choices if isinstance(choices, list) else []
        # What is shown of long texts may end before the one that is meant.
        bad = [str(number) for number, text in enumerate(texts, start=1) if not is_text(text)]
        which = f"; number {', '.join(bad[:5])} is not" if bad else ""
        yield f"choices must be a list of texts that are not blank, got {shown(choices)}{which}"
        return
    if not 2 <= len(choices) <= MOST_CHOICES:
        yield f"there must be 2 to {MOST_CHOICES} choices, got {len(choices)}"
    elif isinstance(answer, str):
        letters = f"A to {string.ascii_uppercase[len(choices) - 1]}"
        yield f"answer {shown(answer)} is neither a letter from {letters} nor the text of one choice alone"
    elif isinstance(answer, bool) or not isinstance(answer, int):
        yield f"answer must be the index of the right choice, 0 to {len(choices) - 1}, got {shown(answer)}"
    elif not 0 <= answer < len(choices):
        yield f"answer {answer} is out of range: with {len(choices)} choices it is 0 to {len(choices) - 1}"


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _half_pair(value: Any) -> str:
    """The first surrogate in the texts of `value`, escaped."""
    if isinstance(value, str):
        if value.isascii():
            return ""
        found = re.search("[\ud800-\udfff]", value)
        return f"\\u{ord(found[0]):04x}" if found else ""
    if isinstance(value, Message):
        return _half_pair(value.content) or _half_pair(value.extra)
    if isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        return next((half for half in map(_half_pair, inner) if half), "")
    return ""
