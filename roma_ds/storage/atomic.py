"""Whole-or-absent files: written under a temporary name in the same folder, synced, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.storage import json_text


def make_folder(path: Path) -> Path:
    """`path` as an existing, writable folder.

    Raises UserError when it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {path}: {error.strerror or error}",
            "choose a writable folder, for instance with output_dir=/path/to/folder",
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on a clean exit it is synced and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Put the names of the files in a folder safely on disk, after a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` whole."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` whole, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises UserError where it is absent, cannot be read or is no JSON."""
    try:
        return json_text.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "check the path") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}", "mend or delete the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: it is not UTF-8 text", "mend or delete the file") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON that can be read: {error}", "mend or delete the file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the path") from error


def write_npy(path: Path, array: Any) -> None:
    """Write a NumPy array in the .npy format, without pickle."""
    import numpy as np

    with writing(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write named columns of equal length as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with writing(path) as temporary:
        pq.write_table(pa.table(dict(columns)), temporary)


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file as Python lists. Raises UserError where it is absent or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
        return columns
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run the stage that makes it") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged: {error}", "delete it and rerun") from error
