"""Keys of rows that nothing reads: which of them hold what would be lost."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any

from roma_ds.data.message import Message

_CONTENT = {
    "article", "background", "body", "content", "contents", "context", "contexts", "conversation",
    "conversations", "dialog", "dialogue", "doc", "document", "documents", "dialogs", "ending", "endings",
    "evidence", "fact", "facts", "functions", "history", "hypothesis", "image", "images", "input", "inputs",
    "instruction", "instructions", "message", "messages", "option", "options", "paragraph", "paragraphs",
    "premise", "prompt", "query", "question", "scenario", "sentence", "sentences", "story", "stem", "system",
    "table", "text", "texts", "tools", "turns", "distractor", "distractors", "a", "b", "c", "d", "e",
    "abstract", "excerpt", "lecture", "passage", "premises", "transcript",
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


def lost(given: dict[str, Any], read: dict[str, Any], unread: Collection[str]) -> Iterator[str]:
    """Which of the keys that are not read hold content which the row as it is read does not repeat.

    given: the row as the file has it. A text that holds all that is read of it, such as question and answer
    written out, loses nothing either.
    """
    seen = ""
    for key in unread:
        if names_content(key) is None:
            continue
        if not seen:
            texts = [value for name, value in read.items() if name in _SEEN and name not in unread]
            seen = "\n".join(_texts(texts))
            shown = {text.strip() for text in _texts(read.get("choices"))}
            parts = [value for name, value in given.items() if name not in unread and name != "id"]
            whole = [text.strip() for text in _texts(parts)]
        for text in map(str.strip, _texts(given[key])):
            repeated = text in seen or text in shown or (whole and all(part in text for part in whole))
            if not repeated:
                yield key
                break


_SEEN = ("prompt", "question", "passage", "messages", "tools")


@cache
def names_content(key: str) -> str | None:
    """A suggestion, perhaps empty, where `key` names content."""
    parts = [part.lower() for part in _PARTS.findall(key)]
    if parts and (parts[-1] in _ABOUT or parts[0] in _COUNTED):
        return None
    if not _CONTENT.isdisjoint(parts):
        return ""
    near = difflib.get_close_matches(key.lower(), ("passage", "question", "choices", "prompt"), 1, 0.8)
    return f"; did you mean {near[0]!r}?" if near else None


def told(key: str) -> str:
    """That a key which names content is not read, in words."""
    return f"the key {key!r} is not read{names_content(key) or ''}"


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield value.content
        yield value.extra
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def unread(row: dict[str, Any], known: Collection[str]) -> list[str]:
    """Keys that nothing reads, in their order."""
    return [key for key in row if key not in known]
