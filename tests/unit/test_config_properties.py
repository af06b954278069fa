"""Whatever comes: unknown keys are named, valid runs survive YAML, every failure is explained."""

from __future__ import annotations

import types
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from roma_ds.config import RunConfig, parse_run_config, to_yaml
from roma_ds.config.constraints import Distinct, Layers, NotEmpty, Range
from roma_ds.config.conversion import key_of, keyed_fields
from roma_ds.config.sources import JUDGES, Judge
from roma_ds.config.yaml_text import dump
from roma_ds.errors import UserError

PATH = Path("/nowhere/run.yaml")
VALID: dict[str, Any] = {
    "model": {"path": "owner/model"},
    "data": {"train": [{"name": "openbookqa"}]},
    "eval": {"tasks": ["arc_easy"]},
    "output_dir": "out",
}
SECTIONS = ("model", "data", "embed", "roma", "index", "train", "eval")

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def values_of(expected: Any) -> st.SearchStrategy[Any]:
    """Plain values that the loader must accept where `expected` is the type of a field."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return _constrained(arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(arm) for arm in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(texts, texts | st.booleans() | st.integers() | st.lists(texts, max_size=2))
    if is_dataclass(expected):
        return sections_of(expected)
    scalars = {
        str: texts,
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6),
        types.NoneType: st.none(),
    }
    return scalars[expected]


def _constrained(base: Any, constraints: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    strategy = values_of(base)
    for constraint in constraints:
        match constraint:
            case Range():
                numbers = st.integers(0, 40) if base is int else st.floats(0, 1) | st.integers(0, 9)
                strategy = numbers.filter(lambda value, bound=constraint: bound.problem(value) is None)
            case NotEmpty():
                strategy = strategy.filter(len)
            case Distinct():
                strategy = st.lists(values_of(get_args(base)[0]), max_size=2, unique=True)
            case Judge():
                strategy = st.sampled_from([*JUDGES, "mine:right", "checks.py:right"])
            case Layers():
                strategy = st.sampled_from(["all", "last1", "first12", [0], [3, 1]])
    return strategy


@st.composite
def sections_of(draw: st.DrawFn, section: Any) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    values = {}
    for key, spec in keyed_fields(section).items():
        required = spec.default is MISSING and spec.default_factory is MISSING
        if required or draw(st.booleans()):
            values[key] = draw(values_of(hints[spec.name]))
    if section.__name__ == "DatasetConfig":
        values.pop(draw(st.sampled_from(["name", "path"])), None)
        if values.get("name") is None and values.get("path") is None:
            values["path"] = draw(texts)
    return values


def problems_of(values: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_run_config(dump(values), PATH, overrides)
    return caught.value.message


@given(place=st.sampled_from(("", *SECTIONS)), key=texts, value=anything)
@settings(max_examples=150, deadline=None)
def test_any_unknown_key_is_named(place: str, key: str, value: Any) -> None:
    hints = get_type_hints(RunConfig)
    known = keyed_fields(hints[place] if place else RunConfig)
    assume(key not in known)
    values = {**VALID, place: {**VALID.get(place, {}), key: value}} if place else {**VALID, key: value}
    assert f"run.yaml: {f'{place}.' if place else ''}{key}: unknown key" in problems_of(values)


@given(values=sections_of(RunConfig))
@settings(max_examples=150, deadline=None)
def test_a_valid_run_survives_yaml(values: dict[str, Any]) -> None:
    try:
        run = parse_run_config(dump(values), PATH)
    except UserError as error:
        refused = (
            "more than once",
            "listed twice",
            "several paths need a name",
            "goes with a name like OWNER/NAME",
            "data.exclude",
            "second copy",
            "takes Flat only",
            "is not kept",
            "follows from train.batch",
            "of no use under data.template=plain",
            "at temperature 0 are all the same",
            "user1 is a place in a chat",
        )
        assert all(any(words in line for words in refused) for line in error.message.splitlines()[-1:])
        return
    assert parse_run_config(to_yaml(run), Path("/elsewhere/config.resolved.yaml")) == run


@given(values=anything | st.fixed_dictionaries(dict.fromkeys(SECTIONS, anything)))
@settings(max_examples=200, deadline=None)
def test_other_values_end_in_an_explained_error(values: Any) -> None:
    assert problems_of(values)


@given(section=st.sampled_from(SECTIONS), key=texts, value=texts)
@settings(max_examples=100, deadline=None)
def test_any_override_is_taken_or_named(section: str, key: str, value: str) -> None:
    override = f"{section}.{key}={value}"
    try:
        parse_run_config(dump(VALID), PATH, [override])
    except UserError as error:
        assert override in error.message


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_run_or_an_explained_error(text: str) -> None:
    try:
        parse_run_config(text, PATH)
    except UserError as error:
        assert error.fix


def test_every_field_is_explained() -> None:
    """Each field of the schema has a docstring, which a literal after it is."""
    import ast

    source = ast.parse((Path(__file__).resolve().parents[2] / "roma_ds" / "config" / "schema.py").read_text())
    bare = []
    for section in (node for node in source.body if isinstance(node, ast.ClassDef)):
        for node, after in zip(section.body, [*section.body[1:], None], strict=True):
            is_field = isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if is_field and not explained:
                bare.append(ast.unparse(node))
    assert not bare


def test_keys_are_field_names_without_the_trailing_underscore() -> None:
    hints = get_type_hints(RunConfig)
    for section in SECTIONS:
        assert all(
            key == key_of(spec) and not key.endswith("_")
            for key, spec in keyed_fields(hints[section]).items()
        )
