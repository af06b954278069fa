"""Parquet and Arrow files, and folders of `save_to_disk`: batch by batch, by their own types."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from roma_ds.data.files.packed import faults
from roma_ds.data.files.table import BATCH, Batch, RowFile
from roma_ds.errors import UserError


def open_table(path: Path, short: str, head: bytes) -> RowFile | None:
    """The file as rows; None where its first bytes are those of no table."""
    found = {
        b"PAR1": ("Parquet", _parquet),
        b"ARROW1": ("Arrow", _arrow),
        b"\xff\xff\xff\xff": ("Arrow", _stream),
    }
    for magic, (kind, reader) in found.items():
        if head.startswith(magic):
            return RowFile(str(path), short, kind, partial(_read, path, reader), lines=False)
    return None


def open_saved(folder: Path, short: str) -> RowFile:
    """A folder that `Dataset.save_to_disk` wrote."""
    return RowFile(str(folder), short, "Arrow folder", partial(_read, folder, _saved), lines=False)


def table_batches(batches: Iterator[Any]) -> Iterator[Batch]:
    """Record batches as rows, numbered from 1."""
    from roma_ds.data.files.arrow_values import rows_of

    done = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            yield Batch(rows_of(part), range(done + 1, done + part.num_rows + 1))
            done += part.num_rows


def _read(path: Path, reader: Any) -> Iterator[Batch]:
    import pyarrow as pa

    with faults(path):
        try:
            yield from table_batches(reader(path))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is damaged: {_first_line(error)}", "write or copy the file again"
            ) from error
        except OSError as error:
            # Arrow reports damage so as well, without a number.
            if error.errno is not None:
                raise
            raise UserError(
                f"{path} is damaged: {_first_line(error)}", "write or copy the file again"
            ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    from roma_ds.data.files.arrow_values import is_text_like

    with pq.ParquetFile(path) as file:
        names = [field.name for field in file.schema_arrow if is_text_like(field.type)]
        yield from _checked(file.iter_batches(BATCH, columns=names, use_threads=False), path)


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        # A reader of files has no end of its own.
        file = pa.ipc.open_file(source)
        yield from _checked((file.get_batch(place) for place in range(file.num_record_batches)), path)


def _stream(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
        yield from _checked(iter(stream), path)


def _saved(folder: Path) -> Iterator[Any]:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder)).with_format("arrow")
    except (ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{folder} cannot be read: {_first_line(error)}", "save the dataset again") from error
    for table in dataset.iter(BATCH):
        yield from _checked(iter(table.combine_chunks().to_batches()), folder)


def _checked(batches: Iterator[Any], path: Path) -> Iterator[Any]:
    """Batches without columns of bytes. Raises UserError where two columns have one name."""
    from roma_ds.data.files.arrow_values import is_text_like

    for first in islice(batches, 1):
        names = first.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{path} has two columns of the name {twice[0]!r}", "rename one of them")
        kept = [field.name for field in first.schema if is_text_like(field.type)]
        yield first.select(kept)
        for batch in batches:
            yield batch.select(kept)


_READERS = {
    b"PAR1": ("Parquet", _parquet),
    b"ARROW1": ("Arrow", _arrow),
    b"\xff\xff\xff\xff": ("Arrow", _stream),
}
"""By the first bytes of a file."""
