"""Plain values (of YAML or JSON) into the typed sections of the schema, with every problem collected."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from roma_ds.config.spelling import did_you_mean

_SCALARS: dict[type, tuple[str, str]] = {
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong at a key path such as `data.train.0.limit`. `misfit`: the value has another type."""

    path: str
    message: str
    misfit: bool = False


@dataclass(frozen=True)
class Converted:
    """A value of the expected type; meaningless where there are problems."""

    value: Any
    problems: tuple[Problem, ...] = ()


def key_of(spec: Field[Any]) -> str:
    """The YAML key of a field: `lambda_` is `lambda`."""
    return spec.name.removesuffix("_")


def keyed_fields(section: type) -> dict[str, Field[Any]]:
    """The fields of a section that YAML can set, by key."""
    return {key_of(spec): spec for spec in fields(section) if spec.metadata.get("key", True)}


def describe(expected: Any, plural: bool = False) -> str:
    """The type in words, as messages name it."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return describe(arguments[0], plural)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arm, plural) for arm in arguments)
    if origin is tuple:
        return f"{'lists' if plural else 'a list'} of {describe(arguments[0], plural=True)}"
    if expected is types.NoneType:
        return "null"
    if origin is dict:
        return "named values"
    if is_dataclass(expected) and isinstance(expected, type):
        return f"{'sections' if plural else 'a section'} with the keys {', '.join(keyed_fields(expected))}"
    return _SCALARS[expected][plural]


def convert(value: Any, expected: Any, path: str = "") -> Converted:
    """`value` as `expected`: a dataclass, tuple[X, ...], union, Literal, Annotated type or scalar type.

    A dict holds what JSON can, under texts.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return _constrained(convert(value, arguments[0], path), arguments[1:], path)
    if origin is Literal:
        return _choice(value, arguments, path)
    if origin in (Union, types.UnionType):
        return _union(value, expected, path)
    if origin is tuple:
        return _list(value, arguments[0], expected, path)
    if origin is dict:
        return _named(value, expected, path)
    if is_dataclass(expected) and isinstance(expected, type):
        return _section(value, expected, path)
    return _scalar(value, expected, path)


def _misfit(value: Any, expected: Any, path: str) -> Converted:
    wanted = describe(expected)
    quotable = wanted.startswith("text") and isinstance(value, bool | int | float)
    message = f"expected {wanted}, got {_shown(value)}{'; put it in quotes' if quotable else ''}"
    return Converted(None, (Problem(path, message, misfit=True),))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a section"
    text = repr(value)
    if isinstance(value, list) and len(text) > 60:
        return f"a list of {len(value)}"
    return text if len(text) <= 120 else text[:117] + "..."


def _scalar(value: Any, expected: type, path: str) -> Converted:
    if expected is types.NoneType:
        return Converted(None) if value is None else _misfit(value, expected, path)
    if expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return Converted(number)
        return Converted(None, (Problem(path, f"must be a finite number, got {value}"),))
    if type(value) is not expected:
        return _misfit(value, expected, path)
    return Converted(value)


def _choice(value: Any, choices: tuple[Any, ...], path: str) -> Converted:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return Converted(value)
    if not isinstance(value, type(choices[0])) or isinstance(value, bool):
        return _misfit(value, Literal[choices], path)
    names = [str(choice) for choice in choices]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    message = f"must be {listed}, got {value!r}{did_you_mean(str(value), names)}"
    return Converted(None, (Problem(path, message),))


def _union(value: Any, expected: Any, path: str) -> Converted:
    tried = [convert(value, arm, path) for arm in get_args(expected)]
    for result in tried:
        if not result.problems:
            return result
    # A number outside its range is better explained by that range than by the other types of the union.
    fitting = [result for result in tried if not any(problem.misfit for problem in result.problems)]
    choices = any(get_origin(arm) is Literal for arm in get_args(expected))
    if fitting and not (choices and isinstance(value, str)):
        return fitting[0]
    return _misfit(value, expected, path)


def _list(value: Any, item: Any, expected: Any, path: str) -> Converted:
    if not isinstance(value, list | tuple):
        return _misfit(value, expected, path)
    results = [convert(element, item, f"{path}.{place}") for place, element in enumerate(value)]
    problems = tuple(problem for result in results for problem in result.problems)
    return Converted(tuple(result.value for result in results), problems)


def _named(value: Any, expected: Any, path: str) -> Converted:
    if value is None:
        return Converted({})
    if not isinstance(value, Mapping):
        return _misfit(value, expected, path)
    return Converted(copy.deepcopy(dict(value)), tuple(_no_json(value, path)))


def _no_json(value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _no_json(inner, f"{path}.{key}")
            else:
                yield Problem(path, f"names must be text, got {_shown(key)}; put it in quotes")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _no_json(inner, f"{path}.{place}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"must be a finite number, got {value}")


def _constrained(result: Converted, constraints: tuple[Any, ...], path: str) -> Converted:
    if result.problems or result.value is None:
        return result
    found = (constraint.problem(result.value) for constraint in constraints)
    return Converted(result.value, tuple(Problem(path, message) for message in found if message))


def _section(value: Any, section: type, path: str) -> Converted:
    shorthand = getattr(section, "shorthand", None)
    if shorthand is not None and isinstance(value, str):
        value = {shorthand: value}
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        return _misfit(value, section, path)
    known, hints = keyed_fields(section), get_type_hints(section, include_extras=True)
    prefix = f"{path}." if path else ""
    problems = [
        Problem(f"{prefix}{key}", f"unknown key{did_you_mean(str(key), known)}")
        for key in value
        if key not in known
    ]
    arguments: dict[str, Any] = {}
    for key, spec in known.items():
        if key in value:
            result = convert(value[key], hints[spec.name], f"{prefix}{key}")
            problems += result.problems
            arguments[spec.name] = result.value
        elif spec.default is MISSING and spec.default_factory is MISSING:
            problems.append(Problem(f"{prefix}{key}", f"missing; it takes {describe(hints[spec.name])}"))
    if problems:
        return Converted(None, tuple(problems))
    built = section(**arguments)
    return Converted(built, tuple(_contradictions(built, path)))


def _contradictions(built: Any, path: str) -> Iterator[Problem]:
    for key, message in getattr(built, "problems", lambda: ())():
        yield Problem(".".join(part for part in (path, key) if part), message)
