"""Keys of dataset rows: those that are read, and those that hold what would be lost."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

READ = (
    "id", "question", "prompt", "passage", "choices", "answer", "answerKey", "subject", "solution",
    "skill", "phrasing",
)  # fmt: skip
"""The last two are those of the demo suite."""
_CONTENT = {
    "article", "background", "body", "content", "contents", "context", "contexts", "conversation",
    "conversations", "dialog", "dialogue", "doc", "document", "documents", "dialogs", "ending", "endings",
    "evidence", "fact", "facts", "history", "hypothesis", "image", "images", "input", "inputs", "instruction",
    "instructions", "message", "messages", "option", "options", "paragraph", "paragraphs", "premise", "query",
    "scenario", "sentence", "sentences", "story", "stem", "system", "table", "text", "texts", "turns",
    "distractor", "distractors", "a", "b", "c", "d", "e", "abstract", "excerpt", "lecture", "premises",
    "transcript",
}  # fmt: skip
"""Words in the names of keys that hold something to read before the answer."""
_ABOUT = {
    "count", "domain", "hash", "id", "ids", "idx", "index", "key", "lang", "language", "len", "length",
    "license", "name", "num", "number", "size", "source", "title", "token", "tokens", "type", "url",
}  # fmt: skip
"""Words that end the names of keys which say something about it: context_id, but not source_document."""
_COUNTED = {"count", "n", "num", "number"}
"""Words that such names begin with as well: num_documents."""
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def unread(row: dict[str, Any]) -> list[str]:
    """Keys that nothing reads."""
    return [key for key in row if key not in READ]


def lost(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with unread keys that hold content which no other key repeats, in words."""
    texts = [row[key] for key in ("prompt", "question", "passage") if isinstance(row.get(key), str)]
    seen = "\n".join(texts)
    choices = row.get("choices")
    shown = {choice for choice in choices if isinstance(choice, str)} if isinstance(choices, list) else set()
    for key in unread(row):
        held = [text.strip() for text in _texts(row[key])]
        missing = any(text not in seen and text not in shown for text in held if text)
        if missing and (near := _names_content(key)) is not None:
            yield f"the key {key!r} is not read{near}"


def _names_content(key: str) -> str | None:
    """A suggestion, perhaps empty, where `key` names content."""
    parts = [part.lower() for part in _PARTS.findall(key)]
    if parts and (parts[-1] in _ABOUT or parts[0] in _COUNTED):
        return None
    if not _CONTENT.isdisjoint(parts):
        return ""
    near = difflib.get_close_matches(key.lower(), ("passage", "question", "choices", "prompt"), 1, 0.8)
    return f"; did you mean {near[0]!r}?" if near else None


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
