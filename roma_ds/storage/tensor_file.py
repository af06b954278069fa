"""Safetensors files written and read tensor by tensor, so that no more than one is in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.storage.tensor_header import read_header

TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "BOOL": np.bool_}
"""NumPy's types by safetensors' names."""
_NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}


class TensorFile:
    """A new file at `path` for arrays of known types and shapes, given one after the other in that order.

    Use it in a `with`; it is not renamed, and whole only after `finish`.
    """

    def __init__(self, path: Path, entries: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
        """entries: NumPy type and shape by key."""
        self._left = {key: (np.dtype(kind), tuple(shape)) for key, (kind, shape) in entries.items()}
        self._digest = hashlib.sha256()
        self._size = 0
        header, start = {}, 0
        for key, (kind, shape) in self._left.items():
            end = start + kind.itemsize * int(np.prod(shape, dtype=np.int64))
            header[key] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.bytes = 8 + len(text) + start
        """Size of the finished file."""
        self._handle = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._write(len(text).to_bytes(8, "little") + text)

    def add(self, key: str, array: NDArray[Any]) -> None:
        """The next array. Raises ValueError for one that was not announced at this place."""
        expected = next(iter(self._left.items()), None)
        if expected != (key, (array.dtype, array.shape)):
            raise ValueError(f"{key} {array.dtype} {list(array.shape)} was given where {expected} is due")
        del self._left[key]
        self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def finish(self) -> dict[str, Any]:
        """Put the file safely on disk; its `bytes` and `sha256`. Raises ValueError where arrays lack."""
        if self._left:
            raise ValueError(f"{', '.join(self._left)} were announced and not given")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def _write(self, content: bytes | memoryview) -> None:
        self._handle.write(content)
        self._digest.update(content)
        self._size += len(content)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()


class TensorReader:
    """The arrays of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError for a file that is none."""
        self.path = path
        _, self._places = read_header(path)

    @property
    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self._places)

    def read(self, key: str) -> NDArray[Any]:
        """One array. Raises KeyError where the file has none of that name or of a type that is not known."""
        place = self._places[key]
        kind = np.dtype(TYPES[place.dtype])
        count = place.size // kind.itemsize
        return np.fromfile(self.path, kind, count, offset=place.start).reshape(place.shape)
