"""JSON: a row a line, an array of rows, or rows over several lines. Texts stay what they are."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from roma_ds.data.files.packed import Progress, faults, unpacked
from roma_ds.data.files.table import BATCH, Batch, RowFile, Unreadable
from roma_ds.errors import UserError
from roma_ds.storage import json_text

_FORM = '{"id": "1", "question": "...", "choices": ["...", "..."], "answer": 0}'
LINES = f"put one JSON object on each line, such as {_FORM}"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""What half of a surrogate pair is written as; both halves of a whole one too."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BLOCK = 1 << 20
_LONGEST = 1 << 26
"""Characters that one row of an array may have."""


def open_json(path: Path, short: str, packing: str | None, head: bytes) -> RowFile:
    """The file as rows. head: its first bytes, unpacked."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    packed = f", {packing}" if packing else ""
    if start.startswith(b"["):
        batches = partial(_batches, path, packing, True)
        return RowFile(str(path), short, f"JSON array{packed}", batches, lines=False)
    if start.startswith(b"{") and _spread(path, packing):
        batches = partial(_batches, path, packing, False)
        return RowFile(str(path), short, f"JSON objects over several lines{packed}", batches, lines=False)
    return RowFile(str(path), short, f"JSON lines{packed}", partial(_line_batches, path, packing))


def _line_batches(path: Path, packing: str | None) -> Iterator[Batch]:
    lines = _lines(path, packing)
    while found := list(islice(lines, BATCH)):
        rows = [_parsed(text) for _, text in found]
        halves = any("\\u" in text and _HALF.search(text) is not None for _, text in found)
        yield Batch(rows, [number for number, _ in found], halves)


def _parsed(line: str) -> Any:
    try:
        return json_text.parse(line)
    except json.JSONDecodeError as error:
        return Unreadable(f"not valid JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return Unreadable(f"not valid JSON: {error}")


def _lines(path: Path, packing: str | None) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank."""
    progress = Progress()
    with faults(path, packing, progress), unpacked(path, packing) as stream:
        for number, line in enumerate(stream, start=1):
            progress.line = number
            if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                yield number, text


def _spread(path: Path, packing: str | None) -> bool:
    """Whether the first row goes over several lines: the first line is no JSON and more lines make it so."""
    first = next((text for _, text in _lines(path, packing)), "")
    if not isinstance(_parsed(first), Unreadable):
        return False
    reader = _Values(path, packing, array=False)
    try:
        number, _, text = next(reader.values())
    except (UserError, StopIteration):
        return False
    return number == 1 and "\n" in text


def _batches(path: Path, packing: str | None, array: bool) -> Iterator[Batch]:
    values = _Values(path, packing, array).values()
    while found := list(islice(values, BATCH)):
        halves = any("\\u" in text and _HALF.search(text) is not None for _, _, text in found)
        yield Batch([value for _, value, _ in found], [number for number, _, _ in found], halves)


class _Values:
    """JSON values one behind the other, in an array or without one, of which a block is in memory."""

    def __init__(self, path: Path, packing: str | None, array: bool) -> None:
        self._path, self._packing, self._array = path, packing, array
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self._decoder = json_text.decoder()
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()

    def values(self) -> Iterator[tuple[int, Any, str]]:
        """(number from 1, value, its text). Raises UserError where the text is no JSON."""
        progress = Progress()
        with faults(self._path, self._packing, progress), unpacked(self._path, self._packing) as stream:
            if self._array:
                self._skip(stream, "[")
            number = 0
            while (sign := self._next(stream)) and sign != "]" * self._array:
                number += 1
                yield (number, *self._value(stream))
                progress.line = self._line
                if self._array and self._next(stream) != "]":
                    self._skip(stream, ",")
            if self._array:
                self._skip(stream, "]")
                if self._next(stream):
                    raise self._fault("text behind the end of the array")

    def _next(self, stream: BinaryIO) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._pass(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(stream):
                return ""

    def _skip(self, stream: BinaryIO, sign: str) -> None:
        if self._next(stream) != sign:
            raise self._fault(f"Expecting {sign!r}")
        self._at += 1

    def _pass(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _value(self, stream: BinaryIO) -> tuple[Any, str]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LONGEST or not self._more(stream):
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    raise self._fault(error.msg, line) from error
                continue
            except RecursionError as error:
                raise self._fault("it is nested too deep") from error
            except ValueError as error:
                raise self._fault(str(error)) from error
            # A number may go on in the next block.
            if end < len(self._text) or self._text[end - 1] in '}]"' or not self._more(stream):
                text = self._text[self._at : end]
                self._pass(end)
                return value, text

    def _more(self, stream: BinaryIO) -> bool:
        """Take another block in; False at the end of the file."""
        if self._ended:
            return False
        # Twice as much as waits, so that a long row is not looked at again and again.
        block = stream.read(max(_BLOCK, 2 * (len(self._text) - self._at)))
        self._ended = not block
        self._text = self._text[self._at :] + self._bytes.decode(block, final=self._ended)
        self._at = 0
        return not self._ended

    def _fault(self, message: str, line: int | None = None) -> UserError:
        return UserError(f"{self._path}:{line or self._line}: not valid JSON: {message}", LINES)
