"""Data files that are no JSON lines: read where that is possible, else called what they are, with the command
that mends them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from data_files import question, run_on
from pyarrow import feather, orc, parquet

from roma_ds.data import load_training
from roma_ds.data.rows import read_rows
from roma_ds.data.sources import training_sources
from roma_ds.errors import UserError

ROWS = [question(place, question=f"quelle clé nº {place}?") for place in range(3)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = pyarrow.Table.from_pylist(ROWS)


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def packed(compression: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, compression) as stream:
        stream.write(TEXT)
    return sink.getvalue().to_pybytes()


def arrow_stream() -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, TABLE.schema) as stream:
        stream.write_table(TABLE)
    return sink.getvalue().to_pybytes()


def zipped(*names: str) -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, TEXT)

    return written(write)


def tarred(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("rows.jsonl")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))


PARQUET = written(lambda buffer: parquet.write_table(TABLE, buffer))
ORC = written(lambda buffer: orc.write_table(TABLE, buffer))
READ: list[tuple[str, str, bytes]] = [
    ("a Parquet file", "rows.parquet", PARQUET),
    ("an Arrow file", "rows.feather", written(lambda buffer: feather.write_feather(TABLE, buffer))),
    ("an Arrow stream", "rows.arrow", arrow_stream()),
    ("packed with bzip2", "rows.jsonl.bz2", bz2.compress(TEXT)),
    ("packed with xz", "rows.jsonl.xz", lzma.compress(TEXT)),
    ("packed with lzma", "rows.lzma", lzma.compress(TEXT, format=lzma.FORMAT_ALONE)),
    ("packed with zstd", "rows.jsonl.zst", packed("zstd")),
    ("packed with lz4", "rows.lz4", packed("lz4")),
    ("one JSON array", "rows.json", json.dumps(ROWS, indent=1).encode()),
]
MENDED: list[tuple[str, str, bytes]] = [
    ("an ORC file", "rows.orc", written(lambda buffer: orc.write_table(TABLE, buffer))),
    ("UTF-16 text", "rows.jsonl", TEXT.decode().encode("utf-16")),
    ("UTF-32 text", "rows", TEXT.decode().encode("utf-32")),
]
NAMED = [
    (zipped("xl/workbook.xml"), "an Excel workbook", "pip install openpyxl; python -c"),
    (zipped("mimetype", "content.xml"), "an OpenDocument file", "pip install odfpy; python -c"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an Excel workbook", "pip install xlrd; python -c"),
    (zipped("in.jsonl"), "a zip archive", "python -m zipfile -e"),
    (zipped("in.jsonl")[:40], "a zip archive", "python -m zipfile -e"),
    (gzip.compress(PARQUET), "a Parquet file, packed with gzip", "gunzip -k"),
    (written(tarred), "a tar archive", "tar -xf"),
    (gzip.compress(written(tarred)), "a tar archive", "tar -xf"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS", "git lfs pull"),
    (b"<!DOCTYPE html>\n<html>", "a web page", "download the file itself"),
    (b"SQLite format 3\x00" + bytes(84), "an SQLite database", "one JSON object on each line"),
    (b"\x00\x01\xfe" * 9, "binary, and of no kind that is known here", "docs/data.md"),
]


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_rows(path)
    assert str(path) in caught.value.message and caught.value.fix
    return caught.value


@pytest.mark.parametrize(("what", "name", "content"), READ, ids=[what for what, _, _ in READ])
def test_what_can_be_read_is_read(tmp_path: Path, what: str, name: str, content: bytes) -> None:
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_rows(path) == ROWS
    assert path.read_bytes() == content


@pytest.mark.parametrize(("what", "name", "content"), MENDED, ids=[what for what, _, _ in MENDED])
def test_the_command_that_is_given_makes_json_lines(
    tmp_path: Path, what: str, name: str, content: bytes
) -> None:
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    path.write_bytes(content)
    error = refusal(path)
    assert f"{path} is {what}; rows are read from JSON, CSV, TSV, Parquet and Arrow files" in error.message
    _, _, program, file, _, target = shlex.split(str(error.fix))
    assert file == str(path) and not Path(target).exists()
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath])}
    # One goes through the shell as it stands; a process for each would take seconds.
    if what == "an ORC file":
        subprocess.run(str(error.fix), shell=True, check=True, env=environment)
    else:
        run_here(program, path, Path(target))
    assert read_rows(Path(target)) == ROWS
    assert path.read_bytes() == content


def run_here(program: str, path: Path, target: Path) -> None:
    """What `python -c program path > target` does."""
    before = sys.stdout, sys.argv
    with open(target, "w") as sys.stdout:
        sys.argv = ["-c", str(path)]
        try:
            exec(program, {})  # noqa: S102  the program of the message under test
        finally:
            sys.stdout, sys.argv = before


@pytest.mark.parametrize(("content", "what", "fix"), NAMED, ids=[f"{fix} {what}" for _, what, fix in NAMED])
def test_other_kinds_are_named(tmp_path: Path, content: bytes, what: str, fix: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    error = refusal(path)
    assert f"{path} is {what}" in error.message and fix in str(error.fix)


def test_what_a_zip_archive_unpacks_to_is_where_the_message_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    path.write_bytes(zipped("in.jsonl"))
    command, _, place = str(refusal(path).fix).partition(", and give the path ")
    _, _, _, _, file, folder = shlex.split(command)
    shutil.unpack_archive(file, folder)
    assert read_rows(Path(place)) == ROWS


def test_a_file_of_another_kind_in_a_data_root_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "openbookqa"
    folder.mkdir(parents=True)
    run = run_on(tmp_path, "data.train=[{name: openbookqa}]", "data.data_root=data")
    for name, content, says in (
        ("train.orc", ORC, "no train.jsonl or other file of rows .* that folder holds train.orc"),
        ("train.jsonl", ORC, "train.jsonl is an ORC file"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            load_training(run)
        (folder / name).unlink()


def test_an_empty_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match="rows has no file of rows in it: it is empty"):
        training_sources(run_on(tmp_path, "data.train=[{path: rows}]"))[0].identity()
