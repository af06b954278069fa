"""The same rows in files of every kind that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

Rows = Sequence[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows])


def separated(rows: Rows, sign: str) -> bytes:
    """Text in columns; what is no text is written as JSON."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sign, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow(
            [cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells]
        )
    return text.getvalue().encode()


def packed(content: bytes, compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def arrow_stream(rows: Rows) -> bytes:
    sink, made = pa.BufferOutputStream(), table(rows)
    with pa.ipc.new_stream(sink, made.schema) as stream:
        stream.write_table(made, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


KINDS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "rows.jsonl": ("JSON lines", lines),
    "rows.ndjson": ("JSON lines", lambda rows: b"\xef\xbb\xbf\n" + lines(rows).replace(b"\n", b"\r\n\n")),
    "rows.jsonl.gz": ("JSON lines, gzip", lambda rows: gzip.compress(lines(rows))),
    "rows.jsonl.bz2": ("JSON lines, bzip2", lambda rows: bz2.compress(lines(rows))),
    "rows.jsonl.xz": ("JSON lines, xz", lambda rows: lzma.compress(lines(rows))),
    "rows.jsonl.lzma": ("JSON lines, lzma", lambda rows: lzma.compress(lines(rows), lzma.FORMAT_ALONE)),
    "rows.jsonl.zst": ("JSON lines, zstd", lambda rows: packed(lines(rows), "zstd")),
    "rows.jsonl.lz4": ("JSON lines, lz4", lambda rows: packed(lines(rows), "lz4")),
    "array.json": ("JSON array", lambda rows: json.dumps(list(rows)).encode()),
    "indented.json": (
        "JSON array",
        lambda rows: json.dumps(list(rows), indent=2, ensure_ascii=False).encode(),
    ),
    "array.json.gz": ("JSON array, gzip", lambda rows: gzip.compress(json.dumps(list(rows)).encode())),
    "spread.json": (
        "JSON objects over several lines",
        lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    ),
    "rows.parquet": ("Parquet", lambda rows: written(lambda buffer: pq.write_table(table(rows), buffer))),
    "groups.parquet": (
        "Parquet",
        lambda rows: written(lambda buffer: pq.write_table(table(rows), buffer, row_group_size=2)),
    ),
    "rows.feather": (
        "Arrow",
        lambda rows: written(lambda buffer: feather.write_feather(table(rows), buffer)),
    ),
    "rows.arrow": ("Arrow", arrow_stream),
    "rows.csv": ("CSV", lambda rows: separated(rows, ",")),
    "semicolons.csv": ("CSV", lambda rows: b"\xef\xbb\xbf" + separated(rows, ";")),
    "rows.csv.gz": ("CSV, gzip", lambda rows: gzip.compress(separated(rows, ","))),
    "rows.tsv": ("TSV", lambda rows: separated(rows, "\t")),
    "rows.tsv.zst": ("TSV, zstd", lambda rows: packed(separated(rows, "\t"), "zstd")),
}
"""By name of a file: how messages call the kind, and its bytes."""


def save(folder: Path, name: str, rows: Rows) -> Path:
    """A file of that kind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(KINDS[name][1](rows))
    return path
