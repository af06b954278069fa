"""What a config field accepts beyond its type; attached with `typing.Annotated`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """Bounds of a number; None leaves a side open."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a number, or None."""
        bounds: list[tuple[float | None, str, Callable[[float, float], bool]]] = [
            (self.above, "greater than", lambda number, bound: number > bound),
            (self.at_least, "at least", lambda number, bound: number >= bound),
            (self.below, "less than", lambda number, bound: number < bound),
            (self.at_most, "at most", lambda number, bound: number <= bound),
        ]
        given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
        if all(holds(value, bound) for bound, _, holds in given):
            return None
        return f"must be {' and '.join(f'{words} {bound:g}' for bound, words, _ in given)}, got {value!r}"


@dataclass(frozen=True)
class NotEmpty:
    """At least one character or element."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a text or a tuple, or None."""
        return None if len(value) else "must not be empty"


@dataclass(frozen=True)
class Distinct:
    """No element twice."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a tuple, or None."""
        twice = sorted({str(item) for item in value if value.count(item) > 1})
        return f"names {', '.join(twice)} more than once" if twice else None


@dataclass(frozen=True)
class Layers:
    """`lastN`, `firstN`, `middleN`, `all`, or distinct layer numbers from 0 upwards."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a text or a tuple of numbers, or None."""
        if isinstance(value, str):
            if re.fullmatch(r"all|(last|first|middle)[1-9][0-9]*", value):
                return None
            return f"{value!r} is none of lastN, firstN, middleN (N from 1), all, or a list of layer numbers"
        if not value:
            return "must name at least one layer"
        if min(value) < 0:
            return f"layer numbers start at 0, got {min(value)}"
        return Distinct().problem(value)


Count = Annotated[int, Range(at_least=1)]
Text = Annotated[str, NotEmpty()]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, below=1)]
