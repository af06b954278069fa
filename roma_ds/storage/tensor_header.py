"""The header of a safetensors file: which tensors it holds, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

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

    Raises OSError where the file cannot be read, and ValueError, KeyError, TypeError or AttributeError where
    it is cut or of another format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is cut off")
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    begin, places = 8 + length, {}
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end or begin + end > size:
            raise ValueError(f"{key} does not fit in it")
        shape = tuple(entry["shape"])
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"{key} has the shape {list(shape)}")
        dtype = str(entry["dtype"])
        if dtype not in BITS:
            raise ValueError(f"{key} has the type {dtype}, which is not known")
        if prod(shape) * BITS[dtype] != 8 * (end - start):
            raise ValueError(f"{key} takes {end - start} bytes, which is not {list(shape)} of {dtype}")
        places[key] = Place(dtype, shape, begin + start, end - start)
    reached = begin
    for key, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != reached:
            raise ValueError(f"{key} begins at byte {place.start}, where {reached} was expected")
        reached += place.size
    if reached != size:
        raise ValueError(f"it has {size} bytes, its tensors end at {reached}")
    return metadata, places
