"""Files as bytes, unpacked where they are packed, and faults of reading them in words."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from roma_ds.errors import UserError

HEAD = 512
"""Bytes that tell a kind."""
PACKINGS: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"]\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
"""By their first bytes."""
ENDINGS = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4")
"""What names of packed files end in."""


class Progress:
    """How far a file was read."""

    line = 0


def packing_of(path: Path) -> str | None:
    """How the file is packed; None where it is not. Raises UserError where it cannot be read."""
    with faults(path):
        with open(path, "rb") as handle:
            start = handle.read(8)
        return next((name for magic, name in PACKINGS.items() if start.startswith(magic)), None)


def head_of(path: Path, packing: str | None) -> bytes:
    """The first bytes, unpacked. Raises UserError where it cannot be read."""
    with faults(path, packing), unpacked(path, packing) as stream:
        return stream.read(HEAD)


@contextlib.contextmanager
def unpacked(path: Path, packing: str | None) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked, one buffer after the other."""
    if packing in ("zstd", "lz4"):
        import pyarrow as pa

        with pa.input_stream(str(path), compression=packing) as stream:
            yield io.BufferedReader(stream, 1 << 18)
        return
    # lzma tells its two formats apart by itself.
    readers: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, None: open}
    with readers.get(packing, lzma.open)(path, "rb") as stream:
        yield stream


@contextlib.contextmanager
def faults(path: Path, packing: str | None = None, progress: Progress | None = None) -> Iterator[None]:
    """Turn what reading raises into a UserError that names the file and how far it was read."""
    progress = progress or Progress()
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"the data file {path} does not exist", "check the path in the run config") from error
    except UnicodeDecodeError as error:
        if b"\0" in error.object:
            raise UserError(
                f"{path} is binary, and of no kind that is known here", "give a file of rows: docs/data.md"
            ) from error
        place = f"{path}:{progress.line}" if progress.line else str(path)
        raise UserError(f"{place}: not UTF-8 text", "save the file as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, packing, progress) from error
    except OSError as error:
        # Without a number it comes from what unpacks.
        if packing and error.errno is None:
            raise _damaged(path, packing, progress) from error
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error


def _damaged(path: Path, packing: str | None, progress: Progress) -> UserError:
    behind = f" after line {progress.line}" if progress.line else ""
    return UserError(f"{path}: damaged {packing} data{behind}", "copy the file again")
