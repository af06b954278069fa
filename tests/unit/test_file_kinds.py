"""Files that are not read: each is called what it is, and the command that is given makes one that is."""

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
from pyarrow import orc, parquet

from roma_ds.data import load_training
from roma_ds.data.rows import read_rows
from roma_ds.errors import UserError

ROWS = [question(place, question=f"quelle clé nº {place}?") for place in range(3)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = pyarrow.Table.from_pylist(ROWS)


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


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
    (bz2.compress(PARQUET), "a Parquet file, packed with bzip2", "bunzip2 -k"),
    (lzma.compress(gzip.compress(TEXT)), "packed with gzip, packed with xz", "unxz -k"),
    (written(tarred), "a tar archive", "tar -xf"),
    (gzip.compress(written(tarred)), "a tar archive", "tar -xf"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS", "git lfs pull"),
    (b"<!DOCTYPE html>\n<html>", "a web page", "download the file itself"),
    (b"SQLite format 3\x00" + bytes(84), "an SQLite database", "one JSON object on each line"),
    (b"\x00\x01\xfe" * 9, "binary, and of no kind that is known", "give a file of rows"),
]


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_rows(path)
    assert str(path) in caught.value.message and caught.value.fix
    return caught.value


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
    (folder / "train.jsonl").write_bytes(zipped("in.jsonl"))
    with pytest.raises(UserError, match=r"train\.jsonl is a zip archive"):
        load_training(run)
