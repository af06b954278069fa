"""Files that are not read, told by their first bytes, each with the command that makes JSON lines of it."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

from roma_ds.data.files.packed import PACKINGS
from roma_ds.errors import UserError

READ = "JSON, CSV, TSV, Parquet and Arrow files"
_TABLES: dict[bytes, tuple[str, str]] = {
    b"FEA1": ("a Feather file", "from pyarrow.feather import read_table as read"),
    b"ORC": ("an ORC file", "from pyarrow.orc import read_table as read"),
}
_PACKED_TABLES: dict[bytes, str] = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
}
"""Read where they are not packed, since that is done within them."""
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


def refuse_other_kinds(path: Path, head: bytes, packing: str | None) -> None:
    """Raises UserError where a data file is of no kind that is read. head: its first bytes, unpacked."""
    found = _kind(path, head, packing)
    if found is None:
        return
    what, fix = found
    if packing and not fix.startswith("tar "):
        what, fix = f"{what}, packed with {packing}", _unpacking(path, packing)
    raise UserError(f"{path} is {what}; rows are read from {READ}", fix)


def _unpacking(path: Path, packing: str) -> str:
    """The command that unpacks the file beside itself."""
    tool = {"gzip": "gunzip", "bzip2": "bunzip2", "lzma": "unlzma"}.get(packing, f"un{packing}")
    return f"{tool} -k {shlex.quote(str(path))}, and give the file that comes out"


def _kind(path: Path, head: bytes, packing: str | None) -> tuple[str, str] | None:
    """What the file is, and the fix; None where it may be text with rows."""
    for magic, what in _PACKED_TABLES.items():
        if head.startswith(magic):
            return what, ""
    for magic, (what, reader) in _TABLES.items():
        if head.startswith(magic):
            rows = "[print(json.dumps(row, default=str)) for row in read(sys.argv[1]).to_pylist()]"
            return what, _written(f"import json, sys; {reader}; {rows}", path)
    if packing and (
        again := next((name for magic, name in PACKINGS.items() if head.startswith(magic)), None)
    ):
        return f"packed with {again}", ""
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
