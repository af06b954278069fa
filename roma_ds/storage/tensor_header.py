"""The header of a safetensors file: which tensors it holds, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any


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
    begin, ends, places = 8 + length, [0], {}
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end or begin + end > size:
            raise ValueError(f"{key} does not fit in it")
        places[key] = Place(entry["dtype"], tuple(entry["shape"]), begin + start, end - start)
        ends.append(end)
    if begin + max(ends) != size:
        raise ValueError(f"it has {size} bytes, its tensors end at {begin + max(ends)}")
    return metadata, places
