"""The header of a safetensors file: which tensors it holds, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from roma_ds.storage import json_text

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4,
}  # fmt: skip
"""Of a value of each type that safetensors knows."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file: `size` bytes from byte `start`."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def width(self) -> int:
        """Bytes of a value, at least 1."""
        return max(1, self.size // max(1, prod(self.shape)))


def read_header(path: Path) -> tuple[Mapping[str, str], dict[str, Place]]:
    """Metadata and places of the tensors by key; no value is read.

    Tensors must lie one behind the other from the end of the header to the end of the file, which shows most
    changes of a header that still is JSON.

    Raises OSError where the file cannot be read, and ValueError where it is cut or of another format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is cut off")
        header = _parsed(file.read(length))
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is no object of texts")
    begin = 8 + length
    places = {key: _place(key, entry, begin, size) for key, entry in header.items()}
    reached = begin
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != reached:
            raise ValueError(f"{key} begins at byte {place.start}, where {reached} was expected")
        reached += place.size
    if reached != size:
        raise ValueError(f"it has {size} bytes, its tensors end at {reached}")
    return metadata, places


def _parsed(text: bytes) -> dict[str, Any]:
    """The object of a header. Raises ValueError."""
    try:
        header = json_text.parse(text.decode())
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _place(key: str, entry: Any, begin: int, size: int) -> Place:
    """Where the tensor of an entry lies; begin: of the values, size: of the file. Raises ValueError."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{key} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{key} has the data_offsets {offsets!r}")
    start, end = offsets
    if start > end or begin + end > size:
        raise ValueError(f"{key} does not fit in it")
    if not _are_sizes(shape):
        raise ValueError(f"{key} has the shape {shape!r}")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{key} has the type {dtype!r}, which is not known")
    if prod(shape) * BITS[dtype] != 8 * (end - start):
        raise ValueError(f"{key} takes {end - start} bytes, which is not {shape} of {dtype}")
    return Place(dtype, tuple(shape), begin + start, end - start)


def _are_sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers from 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
