"""Data files that are no JSON lines, told by their first bytes, each with the command that makes them so."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

from roma_ds.errors import UserError

HEAD = 512
"""Bytes that tell a kind."""
_PARQUET = "from pyarrow.parquet import read_table as read"
_FEATHER = "from pyarrow.feather import read_table as read"
_STREAM = "import pyarrow.ipc as ipc; read = lambda path: ipc.open_stream(path).read_all()"
_ORC = "from pyarrow.orc import read_table as read"
_TABLES: dict[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", _PARQUET),
    b"ARROW1": ("an Arrow file", _FEATHER),
    b"FEA1": ("a Feather file", _FEATHER),
    b"\xff\xff\xff\xff": ("an Arrow stream", _STREAM),
    b"ORC": ("an ORC file", _ORC),
}
_PACKED: dict[bytes, tuple[str, str]] = {
    b"BZh": ("packed with bzip2", "bz2.open(sys.argv[1])"),
    b"\xfd7zXZ\x00": ("packed with xz", "lzma.open(sys.argv[1])"),
    b"]\x00\x00": ("packed with lzma", "lzma.open(sys.argv[1])"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "pyarrow.input_stream(sys.argv[1], compression='zstd')"),
    b"\x04\x22\x4d\x18": ("packed with lz4", "pyarrow.input_stream(sys.argv[1], compression='lz4')"),
}
_ARRAY = (
    "import json, sys; [print(json.dumps(row)) for row in json.load(open(sys.argv[1], encoding='utf-8-sig'))]"
)
_SHEET = (
    "import sys, pandas; pandas.read_excel(sys.argv[1]).to_json(sys.stdout, orient='records', lines=True)"
)
_OTHERS: dict[bytes, str] = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x9d": "packed with compress",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"%PDF": "a PDF",
}
_WIDE = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def refuse_other_kinds(path: Path, head: bytes, gzipped: bool) -> None:
    """Raises UserError where a data file is no JSON lines. head: its first bytes, unpacked if gzipped."""
    found = _kind(path, head)
    if found is None:
        return
    what, fix = found
    if gzipped and not fix.startswith("tar "):
        what, fix = (
            f"{what}, gzipped",
            f"gunzip -k {shlex.quote(str(path))}, and give the file that comes out",
        )
    raise UserError(f"{path} is {what}; rows are read from JSON lines, plain or gzipped", fix)


def _kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """What the file is, and the fix; None where it may be JSON lines."""
    for magic, (what, reader) in _TABLES.items():
        if head.startswith(magic):
            rows = "[print(json.dumps(row, default=str)) for row in read(sys.argv[1]).to_pylist()]"
            return what, _written(f"import json, sys; {reader}; {rows}", path)
    for magic, (what, opened) in _PACKED.items():
        if head.startswith(magic):
            module = opened.partition(".")[0]
            copied = f"import sys, shutil, {module}; shutil.copyfileobj({opened}, sys.stdout.buffer)"
            return what, _written(copied, path)
    for magic, encoding in _WIDE.items():
        if head.startswith(magic):
            text = f"open(sys.argv[1], encoding='{encoding}').read().encode()"
            return f"{encoding.upper()} text", _written(f"import sys; sys.stdout.buffer.write({text})", path)
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "an Excel workbook", _from_sheet(path, "xlrd")
    if head[257:262] == b"ustar":
        return "a tar archive", f"tar -xf {shlex.quote(str(path))}, and give the path of a file in it"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself", "run `git lfs pull` where it was cloned"
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return what, "write its rows as one JSON object on each line, and give that file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "one JSON array", _written(_ARRAY, path)
    if start[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the file itself, not the page that shows it"
    return None


def _zipped(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (OSError, zipfile.BadZipFile):
        names = []
    if "xl/workbook.xml" in names:
        return "an Excel workbook", _from_sheet(path, "openpyxl")
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file", _from_sheet(path, "odfpy")
    folder = path.with_name(f"{path.stem}-files")
    inside = f"{folder / names[0]}" if len(names) == 1 else f"a file in {folder}"
    quoted = f"{shlex.quote(str(path))} {shlex.quote(str(folder))}"
    return "a zip archive", f"python -m zipfile -e {quoted}, and give the path {inside}"


def _from_sheet(path: Path, package: str) -> str:
    return f"pip install {package}; {_written(_SHEET, path)}"


def _written(program: str, path: Path) -> str:
    """The command that runs `program` on the file and keeps what it prints, beside the file."""
    name = path.stem if path.suffix else path.name
    name = next(
        (name.removesuffix(end) for end in (".jsonl", ".json", ".ndjson") if name.endswith(end)), name
    )
    target = path.with_name(f"{name}.jsonl")
    if target.exists():
        target = path.with_name(f"{name}-lines.jsonl")
    return f'python -c "{program}" {shlex.quote(str(path))} > {shlex.quote(str(target))}'
