"""Columns of Arrow as Python values: texts as texts, nothing guessed, nothing rounded."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch. What is null is left out, of a struct too."""
    columns = [values(batch.column(place)) for place in range(batch.num_columns)]
    return _dicts(batch.schema.names, columns, [column.null_count for column in batch.columns])


def values(array: Any) -> list[Any]:
    """The values of an array, null as None. Those that JSON has no kind for are as Arrow gives them."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        inner = values(array.storage)
        return [None if text is None else json.loads(text) for text in inner] if _is_json(kind) else inner
    if kinds.is_dictionary(kind):
        return values(array.dictionary_decode())
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        found: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        return found
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return _lists(array)
    if kinds.is_struct(kind):
        columns = array.flatten()
        found = _dicts(
            [field.name for field in kind],
            [values(column) for column in columns],
            [column.null_count for column in columns],
        )
        if array.null_count:
            return [row if there else None for row, there in zip(found, _there(array), strict=True)]
        return found
    if (kinds.is_integer(kind) or kinds.is_floating(kind)) and not array.null_count:
        numbers: list[Any] = array.to_numpy().tolist()
        return numbers
    others: list[Any] = array.to_pylist()
    return others


def is_text_like(kind: Any) -> bool:
    """Whether a type holds values to read: not bytes, such as pictures and sounds, at any depth."""
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return False
    if kinds.is_struct(kind):
        return all(is_text_like(field.type) for field in kind)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return is_text_like(kind.value_type)
    return True


def _is_json(kind: Any) -> bool:
    return bool(getattr(kind, "extension_name", "") == "arrow.json")


def _there(array: Any) -> list[bool]:
    found: list[bool] = array.is_valid().to_numpy(zero_copy_only=False).tolist()
    return found


def _lists(array: Any) -> list[Any]:
    inner = values(array.flatten())
    lengths = pc.list_value_length(array).fill_null(0).to_numpy().tolist()
    found: list[Any] = []
    start = 0
    for length in lengths:
        found.append(inner[start : start + length])
        start += length
    if array.null_count:
        return [one if there else None for one, there in zip(found, _there(array), strict=True)]
    return found


def _dicts(names: list[str], columns: list[list[Any]], nulls: list[int]) -> list[dict[str, Any]]:
    if not any(nulls):
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]
