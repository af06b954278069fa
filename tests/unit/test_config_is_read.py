"""No option is declared and then ignored: each field of the schema is read by code outside config/."""

from __future__ import annotations

import ast
import functools
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from roma_ds.config import RunConfig
from roma_ds.config.conversion import keyed_fields

PACKAGE = Path(__file__).resolve().parents[2] / "roma_ds"

NOT_READ_YET: frozenset[str] = frozenset()
"""Fields, as `section.field`, that no code reads yet. Must shrink to empty; what is read must leave it."""

RESOLVED_BY_CONFIG = frozenset({"train.clip", "run.deepspeed", "dataset.name"})
"""Fields that take effect inside config/: through the resolved DeepSpeed JSON, or as DatasetConfig.label."""


def sections(section: Any, name: str) -> dict[str, Any]:
    """Every dataclass of the schema by the name that variables and attributes of its type carry."""
    found = {name: section}
    for key, hint in get_type_hints(section).items():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner):
                found |= sections(inner, {"tasks": "task"}.get(key, key if inner is hint else "dataset"))
    return found


SECTIONS = sections(RunConfig, "run")
FIELDS = sorted(
    f"{name}.{spec.name}" for name, section in SECTIONS.items() for spec in keyed_fields(section).values()
)
ONE_VALUE = frozenset(
    f"{name}.{spec.name}"
    for name, section in SECTIONS.items()
    for spec in keyed_fields(section).values()
    if len(get_args(get_type_hints(section)[spec.name])) == 1
    and get_origin(get_type_hints(section)[spec.name]) is Literal
)
"""Fields that accept one value alone, so that there is nothing to read until a second one is accepted."""


@functools.cache
def attribute_reads() -> frozenset[tuple[str, str]]:
    """(what it is read from, attribute) of every attribute loaded outside config/; `a.b.c` reads (b, c)."""
    reads = set()
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "config"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                reads.add((name, node.attr))
    return frozenset(reads)


def is_read(field: str) -> bool:
    section, name = field.split(".")
    aliases = {
        "run": {"run", "self"},
        "task": {"task", "item"},
        "dataset": {"dataset", "item"},
    }.get(section, {section, "config", "settings"})
    return any((alias, name) in attribute_reads() for alias in aliases)


def test_the_schema_was_walked() -> None:
    assert set(SECTIONS) == {
        "run", "model", "data", "dataset", "columns", "embed", "roma", "collect", "index", "train", "eval",
        "task", "guards", "chat",
    }  # fmt: skip
    assert len(FIELDS) > 50
    assert not ONE_VALUE


@pytest.mark.parametrize("field", sorted(set(FIELDS) - NOT_READ_YET - RESOLVED_BY_CONFIG - ONE_VALUE))
def test_field_is_read(field: str) -> None:
    assert is_read(field), f"{field} is declared and read nowhere outside config/"


def test_the_lists_of_exceptions_are_current() -> None:
    assert set(FIELDS) >= NOT_READ_YET | RESOLVED_BY_CONFIG
    assert not [field for field in NOT_READ_YET if is_read(field)], (
        "take what is read now out of NOT_READ_YET"
    )
