"""Where the tensors of a safetensors file lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from roma_ds.storage.tensor_header import read_header

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class UnreadType(ValueError):
    """A tensor is of a type that is not read."""


class Placed(Protocol):
    """What is known of a tensor of a checkpoint before any value is read."""

    @property
    def dtype(self) -> torch.dtype:
        """Type in which it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is read."""

    @property
    def grain(self) -> int:
        """Values that are read together at least: to read fewer costs as much."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `shape` values of `dtype` from byte `start` of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    grain: ClassVar[int] = 1

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Places of the tensors in a file. Raises UnreadType, and OSError or ValueError for a damaged one."""
    tensors = {}
    for key, place in read_header(path)[1].items():
        if place.dtype not in _DTYPES:
            raise UnreadType(f"{key} has the type {place.dtype}, which is not supported")
        tensors[key] = StoredTensor(path, _DTYPES[place.dtype], place.shape, place.start)
    return tensors
