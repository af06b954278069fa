"""Damage to safetensors files, and changes that keep them whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutations import NAN, Case, shuffled

Entries = dict[str, Any]


def parsed(path: Path) -> tuple[Entries, bytes]:
    """Header and values of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Entries | bytes, values: bytes, pad: int = 0) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + 8 * pad)
    return len(text).to_bytes(8, "little") + text + values


def keys_of(header: Entries) -> list[str]:
    """Names of the tensors."""
    return [key for key in header if key != "__metadata__"]


def other_layout(header: Entries, values: bytes, rng: random.Random) -> bytes:
    """The same tensors under another header."""
    way = rng.randrange(5)
    if way == 0:
        header["__metadata__"] = {
            "format": "pt",
            **header.get("__metadata__", {}),
            "note": "ü " * rng.randint(1, 9),
        }
    elif way == 1:
        header.pop("__metadata__", None)
    elif way == 2:
        header = shuffled(header, rng)
    elif way == 3:
        header["__metadata__"] = {**header.get("__metadata__", {}), "": "", "x" * 300: "y" * 3000}
    return joined(header, values, rng.choice([0, 0, 1, 40]))


Spoil = Callable[[Entries, bytes, random.Random], bytes]


def _entry(change: Callable[[Entries, random.Random], None]) -> Spoil:
    """Damage to the entry of one tensor."""

    def spoil(header: Entries, values: bytes, rng: random.Random) -> bytes:
        change(header[rng.choice(keys_of(header))], rng)
        return joined(header, values)

    return spoil


def _put(name: str, *choices: Any) -> Spoil:
    return _entry(lambda entry, rng: entry.update({name: rng.choice(choices)}))


def _moved(by: Callable[[int, int], tuple[Any, Any]]) -> Spoil:
    return _entry(lambda entry, rng: entry.update(data_offsets=list(by(*entry["data_offsets"]))))


def _length(header: Entries, values: bytes, rng: random.Random) -> bytes:
    content = joined(header, values)
    told = rng.choice([0, 1, 2**63 - 1, 2**64 - 1, len(content), len(content) - 7, 10**9])
    return told.to_bytes(8, "little") + content[8:]


def _cut(header: Entries, values: bytes, rng: random.Random) -> bytes:
    content = joined(header, values)
    return content[: rng.choice([0, 3, 8, 9, rng.randrange(len(content)), len(content) - 1])]


def _twice(header: Entries, values: bytes, rng: random.Random) -> bytes:
    key = rng.choice(keys_of(header))
    entry = json.dumps({key: header[key]})[1:-1]
    return joined(b"{" + entry.encode() + b"," + json.dumps(header).encode()[1:], values)


def _metadata(header: Entries, values: bytes, rng: random.Random) -> bytes:
    header["__metadata__"] = rng.choice(
        [[], [1], "text", 3, True, {"step": 3}, {"a": None}, {"a": {"b": "c"}}]
    )
    return joined(header, values)


def _swapped(header: Entries, values: bytes, rng: random.Random) -> bytes:
    first, second = rng.sample(keys_of(header), 2)
    header[first]["data_offsets"] = header[second]["data_offsets"]
    return joined(header, values)


HEADER_DAMAGE: dict[str, Spoil] = {
    "header length": _length,
    "truncated": _cut,
    "bytes behind the end": lambda header, values, rng: joined(
        header, values + bytes(rng.choice([1, 8, 4096]))
    ),
    "values cut off": lambda header, values, rng: joined(header, values[: -rng.choice([1, 4, 128])]),
    "overlapping offsets": _swapped,
    "a gap": _moved(lambda start, end: (start + 8, end + 8)),
    "offsets the wrong way round": _moved(lambda start, end: (end, start)),
    "negative offsets": _moved(lambda start, end: (start - end - 8, -8)),
    "offsets that are no whole numbers": _moved(lambda start, end: (float(start), float(end))),
    "offsets as texts": _moved(lambda start, end: (str(start), str(end))),
    "offsets beyond the file": _moved(lambda start, end: (start + 2**40, end + 2**40)),
    "odd offsets": _put(
        "data_offsets", [], [0], [0, 8, 16], None, 3, "0,8", [None, 8], [True, 128], {"a": 0}
    ),
    "wrong shape": _entry(lambda entry, rng: entry["shape"].append(rng.choice([2, 0, 3]))),
    "odd shape": _put("shape", None, 3, "8,32", [-8, -32], [8.0, 32.0], [True, 256], ["8", "32"], {"a": 8}),
    "wrong dtype": _entry(lambda entry, rng: entry.update(dtype="F64" if entry["dtype"] != "F64" else "F32")),
    "odd dtype": _put("dtype", "F33", "", "float32", 3, None, ["F32"], {"a": 1}, "Q4_K"),
    "an entry that is none": lambda header, values, rng: joined(
        {**header, rng.choice(keys_of(header)): rng.choice([None, 3, [], "text", {}])}, values
    ),
    "a missing part": _entry(lambda entry, rng: entry.pop(rng.choice(list(entry)))),
    "a tensor twice": _twice,
    "odd metadata": _metadata,
    "no object": lambda header, values, rng: joined(
        rng.choice([b"[]", b"3", b"null", b'"text"', b"true"]), values
    ),
    "no JSON": lambda header, values, rng: joined(json.dumps(header).encode()[:-1], values),
    "not UTF-8": lambda header, values, rng: joined(
        json.dumps(header).encode().replace(b"layers", b"l\xffyers", 1), values
    ),
    "NaN in the header": lambda header, values, rng: joined({**header, "x": NAN}, values),
    "nested too deep": lambda header, values, rng: joined(b"[" * 100_000, values),
    "no tensors": lambda header, values, rng: joined({}, values),
    "another format": lambda header, values, rng: (
        rng.choice([b"PK\x03\x04", b"GGUF\x03\0\0\0", b"\x80\x02}q"]) + values[: rng.choice([0, 4000])]
    ),
    "zeros": lambda header, values, rng: bytes(len(values)),
}  # fmt: skip


def spoilt(file: Callable[[Case], str], spoil: Spoil) -> Callable[[Case], str]:
    """The mutator that applies damage to a file."""

    def apply(case: Case) -> str:
        name = file(case)
        case.write(name, spoil(*parsed(case.folder / name), case.rng))
        return name

    return apply
