"""JSON as users write it, of which every fault is a ValueError in words."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse(text: str, finite: bool = False) -> Any:
    """The value of a JSON text. finite: refuse NaN and infinity, which Python's own writer makes.

    Raises JSONDecodeError where the text is no JSON, and ValueError where an object has a key twice, of which
    readers take one or the other, or where objects are nested too deep.
    """
    constant = _refuse if finite else None
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def decoder() -> json.JSONDecoder:
    """What reads values one behind the other and refuses a key that is given twice with ValueError."""
    return json.JSONDecoder(object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a value of JSON")
