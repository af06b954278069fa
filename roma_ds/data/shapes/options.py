"""Options and answers in the forms that people write them, as a list of texts and an index."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.data.shapes.row import unpacked_text

LETTERS = string.ascii_uppercase
_TRUE, _FALSE = ("yes", "true"), ("no", "false")
_MANY = 50
"""Rows from which on it is strange that the first option is never right."""
Meanings = dict[str, set[int]]


@dataclass(frozen=True)
class OptionForm:
    """How options and answers of one file are written."""

    columns: tuple[str, ...] = ()
    """Columns that hold one option each."""
    answers: str | None = None
    """What decides where an answer could mean two options: `label`, `index`, `letter` or `text`."""


def read_options(row: dict[str, Any], form: OptionForm = OptionForm()) -> dict[str, Any]:
    """The row with options as texts and the answer as an index, where that is beyond doubt; else as it is.

    Options may come as {"text": [...], "label": [...]}, as [{"text", "label"}, ...], as {label: text}, as any
    of these in a text, or in columns of their own, and an answer as index, label, letter, digit, text of an
    option or truth value, also under `answerKey`. A truth value without options answers `no` or `yes`.
    """
    choices = row.get("choices")
    if choices is None:
        if form.columns:
            row = {key: value for key, value in row.items() if key not in form.columns} | {
                "choices": _in_columns(row, form.columns)
            }
        elif isinstance(row.get("answer"), bool):
            row = {**row, "choices": ["no", "yes"]}
        else:
            return row
    elif type(choices) is list and type(row.get("answer")) is int and _as_ours(row, choices):
        return row
    texts, labels = _texts(unpacked_text(row["choices"]))
    read = {**row, "choices": texts}
    if not isinstance(texts, list):
        return {"answer": row["answerKey"], **read} if "answerKey" in row else read
    if isinstance(row.get("answerKey"), str):
        read["answerKey"] = _index(texts, labels, row["answerKey"], form)
    if "answer" in row:
        read["answer"] = _index(texts, labels, row["answer"], form)
    elif "answerKey" in row:
        read["answer"] = _index(texts, labels, row["answerKey"], form)
    if read.get("answerKey") == read.get("answer"):
        read.pop("answerKey", None)
    return read


def _as_ours(row: dict[str, Any], choices: list[Any]) -> bool:
    return "answerKey" not in row and all(type(choice) is str for choice in choices)


def option_columns(keys: Iterable[str]) -> tuple[str, ...]:
    """`A`, `B`, ... or `a`, `b`, ... among the names of columns, where at least the first two are there."""
    names = set(keys)
    for letters in (LETTERS, LETTERS.lower()):
        count = next((place for place, letter in enumerate(letters) if letter not in names), len(letters))
        if count > 1:
            return tuple(letters[:count])
    return ()


def answer_form(rows: Iterable[dict[str, Any]], columns: tuple[str, ...]) -> OptionForm:
    """How the answers of a file are written that begins with these rows.

    Where some answers could be read in two ways, such as a digit as an index or as an option's text, the way
    counts that all answers can be read in; none where several are such.
    """
    form = OptionForm(columns)
    possible: Counter[str] = Counter()
    count = 0
    for row in rows:
        read = dict(row)
        if columns and row.get("choices") is None:
            read["choices"] = _in_columns(row, columns)
        texts, labels = _texts(unpacked_text(read.get("choices")))
        answer = read.get("answer", read.get("answerKey"))
        if isinstance(texts, list) and isinstance(answer, str | int | float) and answer != "":
            count += 1
            possible.update(list(_meanings(texts, labels, answer)))
    ways = [way for way, times in possible.items() if times == count]
    return OptionForm(columns, ways[0]) if len(ways) == 1 else form


def counts_from_one(rows: Iterable[dict[str, Any]]) -> bool:
    """Whether many answers are numbers of options and none is 0."""
    given = [row.get("answer") for row in rows if isinstance(row.get("choices"), list)]
    numbers = [int(text) for text in map(str, given) if text.isdecimal()]
    return len(numbers) >= _MANY and 0 not in numbers


def _in_columns(row: dict[str, Any], columns: tuple[str, ...]) -> list[Any]:
    """The options of a row, without empty ones at the end."""
    found = [row.get(name) for name in columns]
    while found and (found[-1] is None or found[-1] == ""):
        found.pop()
    return found


def _texts(given: Any) -> tuple[Any, Sequence[Any] | None]:
    """Options and their labels, if they have any."""
    if isinstance(given, dict):
        if set(given) == {"text", "label"}:
            texts, labels = given["text"], given["label"]
            both = isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels)
            return (texts, labels) if both else (given, None)
        plain = bool(given) and all(isinstance(text, str) for text in given.values())
        return (list(given.values()), list(given)) if plain else (given, None)
    pairs = isinstance(given, list) and given and all(isinstance(one, dict) for one in given)
    if pairs and all({"text", "label"} <= set(one) for one in given):
        return [one["text"] for one in given], [one["label"] for one in given]
    return given, None


def _index(choices: list[Any], labels: Sequence[Any] | None, answer: Any, form: OptionForm) -> Any:
    """The number of the option that `answer` means; `answer` itself where that is not sure."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if not isinstance(answer, str | int):
        return answer
    meanings = _meanings(choices, labels, answer)
    meant = set().union(*meanings.values())
    if len(meant) > 1 and form.answers in meanings:
        meant = meanings[form.answers]
    if len(meant) == 1:
        return meant.pop()
    # A number beyond the options is named as one.
    return int(answer) if not meant and labels is None and _is_number(answer) else answer


def _meanings(choices: Sequence[Any], labels: Sequence[Any] | None, answer: Any) -> Meanings:
    """By the way to read it, which options an answer means."""
    texts = [choice.strip() if isinstance(choice, str) else choice for choice in choices]
    found: Meanings = {}
    if isinstance(answer, bool):
        words = _TRUE if answer else _FALSE
        found["text"] = _places([text.lower() if isinstance(text, str) else text for text in texts], *words)
        return {way: places for way, places in found.items() if places}
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    written = str(answer).strip()
    if labels is not None:
        found["label"] = _places([str(label).strip() for label in labels], written)
    if isinstance(answer, int):
        found["index"] = {answer} if labels is None else {answer} & set(range(len(choices)))
    elif isinstance(answer, str):
        found["text"] = _places(texts, written)
        if labels is None:
            letter = written if written in texts else written.strip("().").upper()
            found["letter"] = _places(LETTERS[: len(choices)], letter)
            if _is_number(written):
                found["index"] = {int(written)} & set(range(len(choices)))
            if not any(found.values()) and written.lower() in ("true", "false"):
                return _meanings(choices, labels, written.lower() == "true")
    return {way: places for way, places in found.items() if places}


def _is_number(answer: Any) -> bool:
    return isinstance(answer, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", answer) is not None


def _places(names: Sequence[Any], *wanted: str) -> set[int]:
    return {place for place, name in enumerate(names) if name in wanted}
