"""A GGUF file with other values in some tensors and more metadata, and every other byte as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from roma_ds.errors import UserError
from roma_ds.export.gguf_header import FIXED, TEXT, GgufFile, read_gguf

PIECE_BYTES = 1 << 22


def write_copy(
    source: GgufFile, target: Path, replaced: Mapping[str, bytes], entries: Mapping[str, str]
) -> None:
    """Write `target`, which exists and is empty, and put it safely on disk.

    replaced: values of tensors by name, as many bytes as they have; entries: further metadata. Raises
    UserError where `source` ends too early.
    """
    begin, end = source.described
    with open(source.path, "rb") as old, open(target, "wb") as new:
        new.write(old.read(FIXED - 8))
        new.write((len(source.metadata) + len(entries)).to_bytes(8, "little"))
        new.writelines(_pieces(old, FIXED, begin, source.path))
        new.write(_metadata(entries))
        new.writelines(_pieces(old, begin, end, source.path))
        if source.values <= _size(source):
            new.write(bytes(-new.tell() % source.alignment))
        for start, stop, name in _spans(source, replaced):
            if name is not None:
                new.write(replaced[name])
            else:
                new.writelines(_pieces(old, start, stop, source.path))
        new.flush()
        os.fsync(new.fileno())


def difference(
    source: GgufFile, target: Path, replaced: Mapping[str, bytes], entries: Mapping[str, str]
) -> str | None:
    """What in `target` is not as `write_copy` should have left it; None where all is. Raises UserError."""
    copy = read_gguf(target)
    # The values of the others are compared as bytes: a number that is none equals nothing.
    kept = list(copy.metadata) == [*source.metadata, *entries] and copy.alignment == source.alignment
    if not kept or any(copy.metadata[key] != value for key, value in entries.items()):
        return "its metadata"
    grown = copy.values - source.values
    moved = {name: (one.kind, one.shape, one.start + grown, one.size) for name, one in source.tensors.items()}
    if moved != {name: (one.kind, one.shape, one.start, one.size) for name, one in copy.tensors.items()}:
        return "the list of its tensors"
    with open(source.path, "rb") as old, open(target, "rb") as new:
        for begin in (FIXED, source.described[0]):
            stop = source.described[begin != FIXED]
            ahead = 0 if begin == FIXED else copy.described[0] - source.described[0]
            if not _same(old, begin, stop, source.path, new, ahead):
                return "its header"
        for start, stop, name in _spans(source, replaced):
            if name is None:
                same = _same(old, start, stop, source.path, new, grown)
            else:
                same = b"".join(_pieces(new, start + grown, stop + grown, target)) == replaced[name]
            if not same:
                return name or f"a tensor within bytes {start} to {stop}"
    return None if _size(copy) - copy.values == _size(source) - source.values else "its length"


def _size(file: GgufFile) -> int:
    return file.path.stat().st_size


def _spans(source: GgufFile, replaced: Mapping[str, bytes]) -> Iterator[tuple[int, int, str | None]]:
    """First byte and the one behind the last of the values' parts in order: a tensor to be replaced by its
    name, or None for all that lies between two of them."""
    reached = source.values
    for name in sorted(replaced, key=lambda name: source.tensors[name].start):
        place = source.tensors[name]
        if place.start > reached:
            yield reached, place.start, None
        reached = place.start + place.size
        yield place.start, reached, name
    if _size(source) > reached:
        yield reached, _size(source), None


def _pieces(file: BinaryIO, start: int, stop: int, path: Path) -> Iterator[bytes]:
    file.seek(start)
    while start < stop:
        piece = file.read(min(stop - start, PIECE_BYTES))
        if not piece:
            raise UserError(f"{path} ends at byte {start}, before {stop}", "complete the file")
        start += len(piece)
        yield piece


def _same(old: BinaryIO, start: int, stop: int, path: Path, new: BinaryIO, ahead: int) -> bool:
    """Whether bytes `start` to `stop` - 1 of `old` are those of `new`, there `ahead` bytes later."""
    mine, its = _pieces(old, start, stop, path), _pieces(new, start + ahead, stop + ahead, path)
    return all(one == other for one, other in zip_longest(mine, its))


def _metadata(entries: Mapping[str, str]) -> bytes:
    return b"".join(_text(key) + TEXT.to_bytes(4, "little") + _text(value) for key, value in entries.items())


def _text(text: str) -> bytes:
    content = text.encode()
    return len(content).to_bytes(8, "little") + content
