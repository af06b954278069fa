"""Mutations of safetensors headers and index files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from mutations import Case, as_json, damage_json, lose_file, mutates
from safetensors_damage import HEADER_DAMAGE, Entries, joined, keys_of, other_layout, parsed, spoilt

READ_BY = ("check", "merge")
INDEX = "model/model.safetensors.index.json"


def some_shard(case: Case) -> str:
    """A file of the project's weights."""
    names = sorted(path.name for path in (case.folder / "model").glob("*.safetensors"))
    return f"model/{case.rng.choice(names)}"


for _name, _spoil in HEADER_DAMAGE.items():
    mutates("safetensors header", _name, True, *READ_BY)(spoilt(some_shard, _spoil))
mutates("safetensors header", "layout and metadata", False, *READ_BY)(spoilt(some_shard, other_layout))
lose_file("safetensors header", READ_BY, some_shard)


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
