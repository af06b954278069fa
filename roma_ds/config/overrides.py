"""`a.b=c` arguments laid over the plain values of a config file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.config.conversion import Problem
from roma_ds.config.yaml_text import YamlProblem, parse


@dataclass(frozen=True)
class Override:
    """One `a.b=c`: `path` is the part before the first `=`, `value` the rest read as YAML."""

    text: str
    path: str
    value: Any


def parse_override(text: str) -> Override | Problem:
    """The override in `text`, or what is wrong with it."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        return Problem("", f"{text!r} has not the form key.key=value")
    try:
        return Override(text, path, parse(value))
    except YamlProblem as error:
        return Problem(path, f"{value!r} is not YAML: {error.message}")


def apply(values: Any, overrides: Sequence[Override]) -> tuple[Any, list[Problem]]:
    """A copy of `values` with the overrides set, later ones winning, and those that found no place."""
    values = copy.deepcopy(values)
    problems = []
    for override in overrides:
        *parents, last = override.path.split(".")
        place = values
        walked: list[str] = []
        for part in parents:
            place = _child(place, part)
            walked.append(part)
            if not isinstance(place, dict | list):
                break
        if not _put(place, last, override.value):
            where = ".".join(walked) or "the file"
            problems.append(Problem(override.path, f"{where} holds nothing that {override.path} could set"))
    return values, problems


def _child(place: Any, part: str) -> Any:
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        if isinstance(place[int(part)], str):
            place[int(part)] = {"name": place[int(part)]}
        return place[int(part)]
    return None


def _put(place: Any, last: str, value: Any) -> bool:
    if isinstance(place, dict):
        place[last] = value
        return True
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
        return True
    return False
