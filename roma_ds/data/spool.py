"""Samples on their way to a Parquet file: a batch of them in memory, the others on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roma_ds.data.message import Message
from roma_ds.data.sample import Sample, sample_of
from roma_ds.errors import UserError

_TEXTS = pa.list_(pa.string())
_TURN = pa.struct(
    [("role", pa.string()), ("content", pa.string()), ("train", pa.bool_()), ("extra", pa.string())]
)
_KINDS = {
    "messages": pa.list_(_TURN),
    "choices": _TEXTS, "options": _TEXTS, "contexts": _TEXTS, "answer": pa.int64(), "templated": pa.bool_(),
    "behind_user": pa.int64(),
}  # fmt: skip
"""Of the columns that hold no text."""
OF_CHATS = frozenset(("messages", "tools", "templated", "behind_user"))
OF_SOLUTIONS = frozenset(("final",))
OPTIONAL = OF_CHATS | OF_SOLUTIONS
"""Fields that are columns only where some sample has turns, or a worked solution: files are then as they were
before there were these."""
_ALIKE = ["task", "split", "subject", "target", "tools", "final"]
_ALIKE += ["options.list.element", "messages.list.element.role", "messages.list.element.extra"]
"""Columns whose values come again and again."""
_NAMES = tuple(spec.name for spec in fields(Sample))
_ALL = pa.schema([(name, _KINDS.get(name, pa.string())) for name in _NAMES])
_PLAIN = pa.schema([field for field in _ALL if field.name not in OPTIONAL])
GROUP = 20_000
"""Samples of a row group."""


class Spool:
    """Samples of one dataset, in Parquet files of a folder, and how many of them each row has made.

    Almost always one file, which can then be the final one; a further one where turns or solutions come
    behind plain samples.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._parts: list[Path] = []
        self._writer: _Writer | None = None
        self._counts: list[np.ndarray] = []
        self.optional: frozenset[str] = frozenset()
        """Those of the optional columns that some sample needs."""

    def add(self, samples: Sequence[Sample], counts: Sequence[int]) -> None:
        """Take the samples of further rows. counts: samples of each row."""
        self._counts.append(np.array(counts, np.int32))
        if not samples:
            return
        optional = self.optional | _needed(samples)
        if self._writer is None or optional != self.optional:
            self.close()
            self.optional = optional
            self._parts.append(self._folder / f"{len(self._parts)}.parquet")
            self._writer = _Writer(self._parts[-1], optional)
        self._writer.add(_batch(samples))

    def close(self) -> None:
        """Nothing more comes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(int(counts.sum()) for counts in self._counts)

    @property
    def only(self) -> Path | None:
        """The file that has all samples; None where there are several."""
        return self._parts[0] if len(self._parts) == 1 else None

    def ids(self, rows: np.ndarray) -> dict[int, list[str]]:
        """Ids of the samples of some rows, by row. rows: bool by number of a row."""
        numbers = np.repeat(np.arange(len(rows)), np.concatenate(self._counts))
        wanted = numbers[rows[numbers]].tolist()
        ids = (one for batch in self.kept(rows, ["id"]) for one in batch.column("id").to_pylist())
        found: dict[int, list[str]] = {}
        for row, identity in zip(wanted, ids, strict=True):
            found.setdefault(row, []).append(identity)
        return found

    def kept(self, rows: np.ndarray, columns: list[str] | None = None) -> Iterator[Any]:
        """Record batches of the samples of some rows. rows: bool by number of a row."""
        mask = np.repeat(rows, np.concatenate(self._counts))
        done = 0
        for part in self._parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(GROUP, columns=columns, use_threads=False):
                    here = mask[done : done + batch.num_rows]
                    done += batch.num_rows
                    if here.any():
                        yield batch if here.all() else batch.filter(pa.array(here))


class _Writer:
    """Record batches into a Parquet file, in row groups of their own, which a thread writes."""

    def __init__(self, path: Path, optional: Collection[str]) -> None:
        self._schema = pa.schema([field for field in _ALL if field.name in {*_PLAIN.names, *optional}])
        self._file = pq.ParquetWriter(path, self._schema, use_dictionary=_ALIKE)
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._waiting: list[Any] = []
        self._count = 0
        self.written = 0

    def add(self, batch: Any) -> None:
        """Write a batch, which may lack optional columns."""
        self._waiting.append(_with_columns(batch, self._schema))
        self._count += batch.num_rows
        self.written += batch.num_rows
        if self._count >= GROUP:
            self._write()

    def close(self) -> None:
        """Write what waits, if only that there are no samples, and the end of the file."""
        if self._waiting or not self.written:
            self._write()
        self._finish()
        self._thread.shutdown()
        self._file.close()

    def _write(self) -> None:
        self._finish()
        group = pa.Table.from_batches(self._waiting, self._schema)
        self._writing = self._thread.submit(self._file.write_table, group)
        self._waiting, self._count = [], 0

    def _finish(self) -> None:
        """Wait for the group before; raises what its writing raised."""
        if self._writing is not None:
            self._writing.result()


def write_batches(path: Path, batches: Iterator[Any], optional: Collection[str]) -> int:
    """Write record batches of samples into a Parquet file; how many samples.

    optional: those of the optional columns that some of them need.
    """
    writer = _Writer(path, optional)
    for batch in batches:
        writer.add(batch)
    writer.close()
    return writer.written


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples in memory in the same way."""
    write_batches(path, batches_of(samples), _needed(samples))


def batches_of(samples: Sequence[Sample]) -> Iterator[Any]:
    """Samples in memory as record batches."""
    for start in range(0, len(samples), GROUP):
        yield _batch(samples[start : start + GROUP])


def _batch(samples: Sequence[Sample]) -> Any:
    return pa.record_batch(list(_columns(samples)), schema=_ALL)


def _with_columns(batch: Any, schema: Any) -> Any:
    """A batch with the columns of `schema`; those that it lacks are of plain samples."""
    there = set(batch.schema.names)
    if set(schema.names) <= there:
        return batch.select(schema.names)
    columns = [
        batch.column(field.name) if field.name in there else _plain(field, batch.num_rows) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def _plain(field: Any, count: int) -> Any:
    default = next(spec.default for spec in fields(Sample) if spec.name == field.name)
    return pa.array([default] * count, field.type)


def _needed(samples: Sequence[Sample]) -> frozenset[str]:
    turns = any(sample.messages is not None for sample in samples)
    solutions = any(sample.final for sample in samples)
    return (OF_CHATS if turns else frozenset()) | (OF_SOLUTIONS if solutions else frozenset())


def read_samples(path: Path, most: int | None = None) -> list[Sample]:
    """The samples of a Parquet file, the first `most` of them; a field that it lacks has its default.

    Raises UserError where it is absent or damaged.
    """
    found: list[Sample] = []
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(GROUP):
                found += samples_of(batch)
                if most is not None and len(found) >= most:
                    return found[:most]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run the stage that makes it") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged: {error}", "delete it and rerun") from error
    return found


def samples_of(batch: Any) -> list[Sample]:
    """The samples of a record batch."""
    names = [name for name in _NAMES if name in batch.schema.names]
    columns = [batch.column(name).to_pylist() for name in names]
    read = [
        [_FROM[name](value) for value in values] if name in _FROM else values
        for name, values in zip(names, columns, strict=True)
    ]
    return [sample_of(**dict(zip(names, values, strict=True))) for values in zip(*read, strict=True)]


def _columns(samples: Sequence[Sample]) -> Iterator[Any]:
    values = zip(*(vars(sample).values() for sample in samples), strict=True)
    for name, kind, column in zip(_NAMES, _ALL.types, values, strict=True):
        yield _turns(column) if name == "messages" else pa.array(column, kind)


def _turns(column: Sequence[tuple[Message, ...] | None]) -> Any:
    """Conversations as an array of lists of structs, null where there is none."""
    flat = list(chain.from_iterable([turns for turns in column if turns]))
    values = zip(*map(_values, flat), strict=True) if flat else [[]] * _TURN.num_fields
    parts = [pa.array(value, field.type) for value, field in zip(values, _TURN, strict=True)]
    ends = np.cumsum([0, *(len(turns) if turns else 0 for turns in column)], dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(ends),
        pa.StructArray.from_arrays(parts, fields=list(_TURN)),
        mask=pa.array([turns is None for turns in column], pa.bool_()),
    )


def _values(turn: Message) -> tuple[str, str, bool, str]:
    return turn.role, turn.content, turn.train, turn.extra


def _messages(turns: list[dict[str, Any]] | None) -> tuple[Message, ...] | None:
    return None if turns is None else tuple(Message(**turn) for turn in turns)


_FROM: Mapping[str, Callable[[Any], Any]] = {
    "messages": _messages,
    "choices": tuple,
    "options": tuple,
    "contexts": tuple,
}
"""Columns whose values are no values of a sample yet."""
