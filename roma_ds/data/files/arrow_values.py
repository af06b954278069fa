"""Rows of Arrow as Python values: texts as texts, nothing guessed, nothing rounded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from roma_ds.data.message import KNOWN, Message, said


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch. What is null is left out, of a struct too."""
    plain = [_storage(column) for column in batch.columns]
    turns = {place: found for place, column in enumerate(plain) if (found := _turns(column)) is not None}
    names = batch.schema.names
    rest = [place for place in range(len(names)) if place not in turns]
    left = [plain[place] for place in rest]
    rows: list[dict[str, Any]]
    rows = pa.RecordBatch.from_arrays(left, names=[names[place] for place in rest]).to_pylist()
    for place in rest:
        if getattr(batch.schema.field(place).type, "extension_name", "") == "arrow.json":
            for row in rows:
                row[names[place]] = None if row[names[place]] is None else json.loads(row[names[place]])
    if any(map(_has_nulls, left)):
        rows = [_without_null(row) for row in rows]
    for place, found in turns.items():
        for row, conversation in zip(rows, found, strict=True):
            row[names[place]] = conversation
    return rows


def _turns(array: Any) -> list[list[Message]] | None:
    """Conversations of nothing but speakers and texts, which are many objects; None for all else."""
    if not kinds.is_list(array.type) or not kinds.is_struct(array.type.value_type) or array.null_count:
        return None
    turns = array.flatten()
    fields = dict(zip((field.name for field in turns.type), turns.flatten(), strict=True))
    if not {"role", "content"} <= set(fields) or turns.null_count:
        return None
    for name, column in fields.items():
        given = name in ("role", "content")
        if column.null_count != (0 if given else len(column)) or (given and not kinds.is_string(column.type)):
            return None
    roles = fields["role"].to_pylist()
    if not KNOWN.issuperset(roles):
        return None
    messages = list(map(said, roles, fields["content"].to_pylist()))
    ends = np.cumsum(pc.list_value_length(array).to_numpy()).tolist()
    return [messages[start:end] for start, end in zip([0, *ends], ends, strict=False)]


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
