"""Rows of Arrow as Python values: texts as texts, nothing guessed, nothing rounded."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch. What is null is left out, of a struct too."""
    plain = [_storage(column) for column in batch.columns]
    found = pa.RecordBatch.from_arrays(plain, names=batch.schema.names)
    rows: list[dict[str, Any]] = found.to_pylist()
    for field in batch.schema:
        if getattr(field.type, "extension_name", "") == "arrow.json":
            for row in rows:
                row[field.name] = None if row[field.name] is None else json.loads(row[field.name])
    return [_without_null(row) for row in rows] if any(map(_has_nulls, plain)) else rows


def is_text_like(kind: Any) -> bool:
    """Whether a type holds values to read: not bytes, such as pictures and sounds, at any depth."""
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return False
    if kinds.is_struct(kind):
        return all(is_text_like(field.type) for field in kind)
    if _is_list(kind):
        return is_text_like(kind.value_type)
    return True


def _storage(array: Any) -> Any:
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def _is_list(kind: Any) -> bool:
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _has_nulls(array: Any) -> bool:
    """Whether something is null, at any depth."""
    if array.null_count:
        return True
    if kinds.is_struct(array.type):
        return any(map(_has_nulls, array.flatten()))
    if _is_list(array.type):
        return _has_nulls(array.flatten())
    return not (
        kinds.is_primitive(array.type) or kinds.is_string(array.type) or kinds.is_large_string(array.type)
    )


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value
