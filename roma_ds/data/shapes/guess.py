"""What unknown columns of a file may be, by their names; only where no two could be meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from roma_ds.config.sources import ColumnsConfig
from roma_ds.data.shapes.row import unpacked_text

_NAMES: dict[str, tuple[str, ...]] = {
    "question": (
        "question", "query", "problem", "stem", "goal", "question_text", "question_stem", "ask", "q",
        "instruction", "input",
    ),
    "answer": (
        "answer", "response", "output", "target", "label", "gold", "correct", "correct_answer", "answer_key",
        "answerkey", "answer_index", "answer_idx", "correct_option", "correct_choice", "correct_index",
        "answer_text", "right_answer", "reply", "completion",
    ),
    "passage": ("passage", "context", "article", "paragraph", "story", "document"),
    "choices": ("choices", "options", "endings", "alternatives", "candidates"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
}  # fmt: skip
_OPTION = re.compile(
    r"(option|choice|opt|op|ending|alternative|candidate|sol|answer)[ _-]?([a-z]|[0-9])", re.I
)
_ORDERS = ("abcdefghijklmnopqrstuvwxyz", "0123456789", "123456789")


def guessed_columns(rows: Sequence[dict[str, Any]], columns: ColumnsConfig) -> ColumnsConfig:
    """`columns` with what the names of the rows' keys say beyond doubt; what is given, or ours, stays.

    Where two columns could be the same thing, neither is taken for it.
    """
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if value is not None))
    given = {name for name in _NAMES if getattr(columns, name) is not None}
    taken = {column for name in given for column in _listed(getattr(columns, name))}
    free = [key for key in keys if key not in taken and key not in columns.ignore]
    found: dict[str, Any] = {}
    options = option_group(free)
    if not {"choices"} & {*given, *keys} and options:
        found["choices"] = options
    for name, names in _NAMES.items():
        alike = [key for key in free if _plain(key) in names and key not in options]
        if name == "messages":
            alike = [key for key in alike if all(_is_conversation(row[key]) for row in rows if row.get(key))]
        if name not in (*given, *found, *keys) and len(alike) == 1:
            found[name] = alike[0]
    if "messages" in found:
        found = {"messages": found["messages"]}
    return replace(columns, **found)


def option_group(keys: Iterable[str]) -> tuple[str, ...]:
    """Columns like `option_a`, `option_b` or `choice1`, `choice2`, ...; none where there are two groups."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        if match := _OPTION.fullmatch(key.strip()):
            groups.setdefault(match[1].lower(), []).append((match[2].lower(), key))
    sound = [
        tuple(key for _, key in sorted(group))
        for group in groups.values()
        if len(group) > 1
        and any("".join(sign for sign, _ in sorted(group)) == order[: len(group)] for order in _ORDERS)
    ]
    return sound[0] if len(sound) == 1 else ()


def _plain(key: str) -> str:
    return re.sub(r"[ -]+", "_", re.sub(r"([a-z])([A-Z])", r"\1_\2", key.strip())).lower()


def _listed(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_conversation(value: Any) -> bool:
    turns = unpacked_text(value)
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) for turn in turns)
