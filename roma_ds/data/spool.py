"""Samples on their way to a Parquet file: a batch of them in memory, the others on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roma_ds.data.message import Message
from roma_ds.data.sample import Sample
from roma_ds.errors import UserError

_TEXTS = pa.list_(pa.string())
_KINDS = {
    "choices": _TEXTS, "options": _TEXTS, "contexts": _TEXTS, "answer": pa.int64(), "templated": pa.bool_(),
    "behind_user": pa.int64(),
}  # fmt: skip
"""Of the columns that hold no text."""
_JSON = "messages"
"""The column that is JSON text, null where a sample is no conversation."""
OF_CHATS = ("messages", "tools", "templated", "behind_user")
"""Fields that are columns only where some sample has turns: files are then as they were before these were."""
_ALIKE = ("task", "split", "subject", "target", "options.list.element")
"""Columns whose values come again and again."""
_NAMES = tuple(spec.name for spec in fields(Sample))
_ALL = pa.schema([(name, _KINDS.get(name, pa.string())) for name in _NAMES])
_PLAIN = pa.schema([field for field in _ALL if field.name not in OF_CHATS])
GROUP = 20_000
"""Samples of a row group."""
_ROW = "row"


class Spool:
    """Samples of one dataset, with the number of the row that each is made of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.chats = False
        """Whether some sample has turns."""
        self._schema = _ALL.append(pa.field(_ROW, pa.int64()))
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(
            self._sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
        )

    def add(self, samples: Sequence[Sample], rows: np.ndarray) -> None:
        """Write samples. rows: by sample, the number of its row."""
        if samples:
            self.chats = self.chats or _have_turns(samples)
            columns = [*_columns(samples), pa.array(rows, pa.int64())]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        """Nothing more comes."""
        self._writer.close()
        self._sink.close()

    def ids(self, rows: np.ndarray) -> dict[int, list[str]]:
        """Ids of the samples of these rows, by row."""
        found: dict[int, list[str]] = {}
        for batch in self._kept(rows):
            of_rows, ids = (batch.column(name).to_pylist() for name in (_ROW, "id"))
            for row, identity in zip(of_rows, ids, strict=True):
                found.setdefault(row, []).append(identity)
        return found

    def kept(self, rows: np.ndarray) -> Iterator[Any]:
        """Record batches of the samples of these rows; rows: bool by number of a row."""
        for batch in self._kept(rows):
            yield batch.select(_NAMES)

    def _kept(self, rows: np.ndarray) -> Iterator[Any]:
        with pa.memory_map(str(self._path)) as source:
            file = pa.ipc.open_file(source)
            for place in range(file.num_record_batches):
                batch = file.get_batch(place)
                mask = rows[batch.column(_ROW).to_numpy()]
                if mask.all():
                    yield batch
                elif mask.any():
                    yield batch.filter(pa.array(mask))


def write_batches(path: Path, batches: Iterator[Any], chats: bool) -> int:
    """Write record batches of samples into a Parquet file, in row groups of their own; how many samples.

    chats: whether some of them have turns.
    """
    schema = _ALL if chats else _PLAIN
    waiting: list[Any] = []
    count = written = 0
    with pq.ParquetWriter(path, schema, use_dictionary=[*_ALIKE]) as writer:
        for batch in batches:
            waiting.append(batch.select(schema.names))
            count += batch.num_rows
            if count >= GROUP:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting, count, written = [], 0, written + count
        if waiting or not written:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    return written + count


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples in memory in the same way."""
    write_batches(path, batches_of(samples), _have_turns(samples))


def batches_of(samples: Sequence[Sample]) -> Iterator[Any]:
    """Samples in memory as record batches."""
    for start in range(0, len(samples), GROUP):
        yield pa.record_batch(list(_columns(samples[start : start + GROUP])), schema=_ALL)


def _have_turns(samples: Sequence[Sample]) -> bool:
    return any(sample.messages is not None for sample in samples)


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
    return [Sample(**dict(zip(names, values, strict=True))) for values in zip(*read, strict=True)]


def _columns(samples: Sequence[Sample]) -> Iterator[Any]:
    values = zip(*(vars(sample).values() for sample in samples), strict=True)
    for name, kind, column in zip(_NAMES, _ALL.types, values, strict=True):
        yield pa.array([_as_json(turns) for turns in column] if name == _JSON else column, kind)


def _as_json(turns: tuple[Message, ...] | None) -> str | None:
    return None if turns is None else f"[{', '.join(map(_turn, turns))}]"


def _turn(turn: Message) -> str:
    """A turn as a JSON object, without what is as by default."""
    more = "" if turn.train else ', "train": false'
    more += f', "extra": {quoted(turn.extra)}' if turn.extra else ""
    return f'{{"role": {quoted(turn.role)}, "content": {quoted(turn.content)}{more}}}'


def _messages(text: str | None) -> tuple[Message, ...] | None:
    return None if text is None else tuple(Message(**turn) for turn in json.loads(text))


_FROM: Mapping[str, Callable[[Any], Any]] = {
    "messages": _messages,
    "choices": tuple,
    "options": tuple,
    "contexts": tuple,
}
"""Columns whose values are no values of a sample yet."""
