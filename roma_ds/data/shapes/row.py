"""A row in our own form, and what a row is that cannot be brought into it.

A row is one of
    {"id", "question", "choices": [text, ...], "answer": index}    options, letters or texts
    {"id", "question", "answer": text}                             free text
    {"id", "prompt", "answer": text}                               free text, the prompt taken verbatim
    {"id", "prompt", "choices": [...], "answer": index}            options, the prompt taken verbatim
    {"id", "messages", "question", "answer": text}                 the turns before an answer
with `passage`, `subject`, `solution`, and for `prompt` rows `question`, as optional texts. `messages` is a
tuple of Message, `question` then what the user says last; `tools` is optional JSON text, and `earlier` holds
the places of further turns in `messages` that are answers too.
"""

from __future__ import annotations

import ast
import json
from typing import Any

Row = dict[str, Any]


class Misfit(Exception):
    """A row is not what the shape of its file asks for; says what is wrong."""


def unpacked_text(value: Any) -> Any:
    """The list or object that a text holds, as JSON or as Python writes it; any other value as it is.

    Tables of text have no other way to hold one.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value


def shown(value: Any) -> str:
    """A value as messages show it."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def one_key(row: dict[str, Any], *keys: str) -> str:
    """Which of several keys of one meaning the row has; the first where none. Raises Misfit where two."""
    found = [key for key in keys if row.get(key) not in (None, "")]
    if len(found) > 1:
        raise Misfit(f"{found[0]} and {found[1]} are both given, and only one of them can be read")
    return found[0] if found else next((key for key in keys if key in row), keys[0])


def is_text(value: Any) -> bool:
    """Whether it is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())
