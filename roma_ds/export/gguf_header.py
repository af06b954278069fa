"""The header of a GGUF file: which metadata and tensors it holds, and where.

It is walked here rather than by the reader of the package gguf, which maps the file, makes an array of every
word of a vocabulary, and does not end at some damaged ones. Of that package are the types and their sizes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from roma_ds.errors import EnvironmentFault, UserError

GATE = re.compile(r"blk\.(\d+)\.ffn_gate_inp\.weight")
"""Name of a router's weight, by the number of its block."""
FIXED = 24
"""Bytes before the metadata: magic, version, number of tensors, number of metadata entries."""
TEXT, LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata values that are numbers, as the module struct calls them."""
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """`size` bytes from byte `start` of its file."""

    kind: str
    """Type as GGUF names it, such as `F32` or `Q4_K`."""
    shape: tuple[int, ...]
    """As torch has it: GGUF counts its dimensions the other way round."""
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: fixed part, metadata, descriptions of the tensors, padding, then their values."""

    path: Path
    metadata: Mapping[str, Any]
    """Texts and numbers by key; None for a list."""
    described: tuple[int, int]
    """First byte of the descriptions of the tensors, and the first one behind them. The places in them count
    from `values`, so that metadata may grow before them."""
    values: int
    """First byte of the values."""
    alignment: int
    tensors: Mapping[str, GgufTensor]

    @property
    def gates(self) -> dict[int, str]:
        """Names of the routers' weights by block."""
        found = {name: GATE.fullmatch(name) for name in self.tensors}
        return {int(match[1]): name for name, match in found.items() if match}


def read_gguf(path: Path) -> GgufFile:
    """The places in a file; no value is read.

    Raises UserError where it is absent, cut, of another format, or in the byte order of other machines, and
    EnvironmentFault where the package gguf is not installed.
    """
    sizes = _type_sizes()
    try:
        with open(path, "rb") as file:
            magic, version = file.read(4), int.from_bytes(file.read(4), "little")
            if magic != b"GGUF":
                raise UserError(f"{path} is no GGUF file", "give a .gguf file, or the folder of a checkpoint")
            if version and not version & 0xFFFF:
                raise UserError(
                    f"{path} is big-endian, for machines of the other byte order",
                    "merge with a little-endian file; `gguf-convert-endian COPY.gguf little` makes one of a "
                    "copy",
                )
            if version not in _VERSIONS:
                raise ValueError(f"its version is {version}, and {_VERSIONS} are known")
            return _walked(path, _Walk(file, path.stat().st_size), sizes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as GGUF: {error}", "complete the file: it may have been cut"
        ) from error


def _type_sizes() -> dict[int, tuple[str, int, int]]:
    """By the number of a type its name, values in a block and bytes of a block."""
    try:
        import gguf
    except ImportError as error:
        raise EnvironmentFault(
            "merging into a GGUF file needs the package gguf", "pip install 'roma_ds[gguf]'"
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}


class _Walk:
    """Reads one thing after the other. Raises ValueError where the file ends before."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        self._require(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self._require(count)
        self.file.seek(count, 1)

    def _require(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise ValueError("it ends within its header")

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self) -> Any:
        """A text or number; None for a list, which is passed over."""
        kind = self.number("I")
        if kind == TEXT:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != LIST:
            raise ValueError(f"it has metadata of the type {kind}, which is not known")
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
        elif kind == TEXT:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise ValueError(f"it has a list of the type {kind}, which is not known")
        return None


def _walked(path: Path, walk: _Walk, sizes: Mapping[int, tuple[str, int, int]]) -> GgufFile:
    tensor_count, entries = walk.number("Q"), walk.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = walk.text()
        if key in metadata:
            raise ValueError(f"it has {key} twice in its metadata")
        metadata[key] = walk.value()
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its general.alignment is {alignment}")
    begin = walk.file.tell()
    found: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(tensor_count):
        name, dimensions = walk.text(), walk.number("I")
        if name in found or dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name} is there twice, or has {dimensions} dimensions")
        shape = tuple(walk.number("Q") for _ in range(dimensions))[::-1]
        found[name] = (walk.number("I"), shape, walk.number("Q"))
    end = walk.file.tell()
    values = end + -end % alignment
    tensors = {name: _tensor(name, *place, values, sizes) for name, place in found.items()}
    reached = values
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start < reached:
            raise ValueError(f"{name} begins within another tensor")
        reached = place.start + place.size
        if reached > walk.size:
            raise ValueError(f"it ends within {name}")
    return GgufFile(path, metadata, (begin, end), values, alignment, tensors)


def _tensor(
    name: str,
    kind: int,
    shape: tuple[int, ...],
    offset: int,
    values: int,
    sizes: Mapping[int, tuple[str, int, int]],
) -> GgufTensor:
    if kind not in sizes:
        raise ValueError(f"{name} has the type {kind}, which the installed gguf does not know")
    title, block, width = sizes[kind]
    if prod(shape) % block:
        raise ValueError(f"{name} has the shape {shape}, which is no whole number of blocks of {title}")
    return GgufTensor(title, shape, values + offset, prod(shape) // block * width)
