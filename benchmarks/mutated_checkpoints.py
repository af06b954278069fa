"""Mutations of safetensors headers, index files and router files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutations import INF, NAN, Case, as_json, damage_json, lose_file, mutates, shuffled
from safetensors.numpy import load_file, save_file

READ_BY = ("check", "merge")
INDEX, ROUTER = "model/model.safetensors.index.json", "router.safetensors"
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


def some_shard(case: Case) -> str:
    """A file of the project's weights."""
    names = sorted(path.name for path in (case.folder / "model").glob("*.safetensors"))
    return f"model/{case.rng.choice(names)}"


def router_file(case: Case) -> str:
    """The project's router file."""
    return ROUTER


def _harmless_header(header: Entries, values: bytes, rng: random.Random) -> bytes:
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


for _name, _spoil in HEADER_DAMAGE.items():
    mutates("safetensors header", _name, True, *READ_BY)(spoilt(some_shard, _spoil))
    if _name not in ("values cut off",):
        mutates("router file", _name, True, "merge")(spoilt(router_file, _spoil))
mutates("safetensors header", "layout and metadata", False, *READ_BY)(spoilt(some_shard, _harmless_header))
mutates("router file", "layout and metadata", False, "merge")(spoilt(router_file, _harmless_header))
lose_file("safetensors header", READ_BY, some_shard)
lose_file("router file", ("merge",), router_file)


@mutates("safetensors header", "transposed shape", True, "check")
def _transposed(case: Case) -> str:
    file = some_shard(case)
    header, values = parsed(case.folder / file)
    uneven = [key for key in keys_of(header) if len(set(header[key]["shape"])) == 2]
    key = case.rng.choice(uneven)
    header[key]["shape"].reverse()
    case.write(file, joined(header, values))
    return f"{file}: {key}"


@mutates("safetensors header", "whole numbers for weights", True, "check")
def _whole(case: Case) -> str:
    file = some_shard(case)
    header, values = parsed(case.folder / file)
    key = case.rng.choice(keys_of(header))
    header[key]["dtype"] = case.rng.choice(["I32", "U32"])
    case.write(file, joined(header, values))
    return f"{file}: {key}"


@mutates("safetensors header", "a tensor under another name", True, *READ_BY)
def _renamed(case: Case) -> str:
    file = some_shard(case)
    header, values = parsed(case.folder / file)
    key = case.rng.choice(keys_of(header))
    header[key + case.rng.choice(["_", ".weight", "x"])] = header.pop(key)
    case.write(file, joined(header, values))
    return f"{file}: {key}"


def placed(case: Case, change: Callable[[Entries, random.Random], Any]) -> str:
    """Change the weight map of the index."""
    index = case.read(INDEX)
    change(index["weight_map"], case.rng)
    case.write(INDEX, as_json(index, case.rng))
    return INDEX


@mutates("index file", "layout and metadata", False, *READ_BY)
def _index_layout(case: Case) -> str:
    index, rng = case.read(INDEX), case.rng
    index["metadata"] = rng.choice(
        [{}, {"total_size": 3}, {**index["metadata"], "note": "x"}, index["metadata"]]
    )
    if rng.random() < 0.3:
        del index["metadata"]
    case.write(INDEX, as_json(index, rng))
    return INDEX


@mutates("index file", "a tensor left out", True, "check")
def _left_out(case: Case) -> str:
    return placed(case, lambda places, rng: places.pop(rng.choice(list(places))))


@mutates("index file", "a tensor that is nowhere", True, *READ_BY)
def _nowhere(case: Case) -> str:
    return placed(
        case,
        lambda places, rng: places.update(
            {"model.layers.9.mlp.gate.weight": rng.choice(list(places.values()))}
        ),
    )


@mutates("index file", "a tensor in another file", True, *READ_BY)
def _elsewhere(case: Case) -> str:
    def change(places: Entries, rng: random.Random) -> None:
        key = rng.choice(list(places))
        places[key] = rng.choice(sorted(set(places.values()) - {places[key]}))

    return placed(case, change)


@mutates("index file", "a file that is not there", True, *READ_BY)
def _absent(case: Case) -> str:
    names = ["nowhere.safetensors", "", ".", "../run.yaml", "/etc/hostname", "config.json", "a\0b", "x" * 300]
    return placed(case, lambda places, rng: places.update({rng.choice(list(places)): rng.choice(names)}))


@mutates("index file", "a place that is no name", True, *READ_BY)
def _no_name(case: Case) -> str:
    return placed(
        case,
        lambda places, rng: places.update({rng.choice(list(places)): rng.choice([3, None, [], {}, True])}),
    )


@mutates("index file", "no weight map", True, *READ_BY)
def _no_map(case: Case) -> str:
    index = case.read(INDEX)
    index["weight_map"] = case.rng.choice([None, [], {}, 3, "text", list(index["weight_map"])])
    if case.rng.random() < 0.3:
        del index["weight_map"]
    case.write(INDEX, json.dumps(index))
    return INDEX


damage_json("index file", READ_BY, lambda case: INDEX)
lose_file("index file", READ_BY, lambda case: INDEX)


def routers(case: Case, change: Callable[[dict[str, Any], random.Random], Any]) -> str:
    """Write the router file with other tensors."""
    weights = load_file(case.folder / ROUTER)
    change(weights, case.rng)
    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, case.folder / ROUTER)
    return ROUTER


@mutates("router file", "fewer routers, other precision", False, "merge")
def _fewer(case: Case) -> str:
    def change(weights: dict[str, Any], rng: random.Random) -> None:
        if rng.random() < 0.5:
            del weights[rng.choice(list(weights))]
        kind = rng.choice([np.float16, np.float32, np.float64])
        weights.update({key: value.astype(kind) for key, value in weights.items()})

    return routers(case, change)


def _on_one(change: Callable[[str, Any, random.Random], tuple[str, Any]]) -> Callable[[Case], str]:
    def apply(case: Case) -> str:
        def replace(weights: dict[str, Any], rng: random.Random) -> None:
            key = rng.choice(list(weights))
            new, value = change(key, weights.pop(key), rng)
            weights[new] = value

        return routers(case, replace)

    return apply


def _with_value(key: str, weight: Any, rng: random.Random) -> tuple[str, Any]:
    weight.reshape(-1)[rng.randrange(weight.size)] = rng.choice([NAN, INF, -INF])
    return key, weight


def _other_shape(key: str, weight: Any, rng: random.Random) -> tuple[str, Any]:
    ways = [weight[:-1], weight[:, :-1], weight.T, weight.reshape(-1), np.repeat(weight, 2, 0), weight[None]]
    return key, rng.choice(ways)


for _name, _change in {
    "another model's names": lambda key, weight, rng: (
        key.replace("mlp.gate", "block_sparse_moe.gate"), weight
    ),
    "a layer too many": lambda key, weight, rng: (
        f"model.layers.{rng.choice([4, 47])}.mlp.gate.weight", weight
    ),
    "another shape": _other_shape,
    "a value that is not finite": _with_value,
    "whole numbers": lambda key, weight, rng: (key, weight.astype(rng.choice([np.int32, np.int8, np.bool_]))),
    "a tensor that is no router": lambda key, weight, rng: (
        "model.layers.3.self_attn.q_proj.weight", np.zeros((32, 32), np.float32)
    ),
}.items():  # fmt: skip
    mutates("router file", _name, True, "merge")(_on_one(_change))
