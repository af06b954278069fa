"""Mutations of model configs, safetensors headers, index files and router files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutations import INF, NAN, Case, as_json, damage_json, lose_file, mutates, shuffled
from safetensors.numpy import load_file, save_file

FAMILIES = ("olmoe", "qwen3_moe", "mixtral", "deepseek_v3")
"""The first is the project's model, the others are configs alone."""
EXPERTS = {"mixtral": "num_local_experts", "deepseek_v3": "n_routed_experts"}
INDEX, ROUTER = "model/model.safetensors.index.json", "router.safetensors"
PLANNED = ("plan",)


def config_file(case: Case) -> str:
    """That of some family, which becomes what `plan` is asked about."""
    family = case.rng.choice(FAMILIES)
    file = "model/config.json" if family == FAMILIES[0] else f"configs/{family}/config.json"
    place = case.folder / file
    case.arguments = [str(place if case.rng.random() < 0.5 else place.parent)]
    return file


def own_config(case: Case) -> str:
    """That of the project's model."""
    return "model/config.json"


def changed_config(case: Case, file: str, changes: dict[str, Any]) -> str:
    """Write a config.json with other values; returns them in words."""
    case.write(file, as_json({**case.read(file), **changes}, case.rng))
    return f"{file}: {str(changes)[:80]}"


def harmless_values(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """Some that mean the same network."""
    rng = case.rng
    ways: list[dict[str, Any]] = [
        {"max_position_embeddings": float(values["max_position_embeddings"])},
        {"attention_dropout": 0},
        {"initializer_range": 1},
        {"torch_dtype": rng.choice(["torch.bfloat16", "bfloat16", "auto", "float32", None])},
        {"dtype": rng.choice(["torch.float32", "bfloat16", "auto"])},
        {"_attn_implementation": rng.choice(["flash_attention_2", "eager", "sdpa", None])},
        {"quantization_config": {}},
        {"use_cache": rng.choice([True, False])},
        {"output_router_logits": rng.choice([True, False])},
        {"transformers_version": rng.choice(["4.30.0", "5.0.0", "4.99.dev0"])},
        {"architectures": values.get("architectures")},
        {"x_note": rng.choice(["text", 3, [1, 2], {"a": 1}, None])},
        {"_name_or_path": rng.choice(["somewhere/else", ""])},
        {"pad_token_id": rng.choice([None, 0])},
        {"return_dict": True},
    ]
    if "router_aux_loss_coef" in values:
        ways += [{"router_aux_loss_coef": rng.choice([0, 1, 0.01])}]
    if values["model_type"] == "olmoe":
        ways += [{"clip_qkv": rng.choice([8, 8.5, None])}]
    changes: dict[str, Any] = {}
    for way in rng.sample(ways, rng.randint(1, 4)):
        changes |= way
    return changes


def harmful_values(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """One of which no network, or not this one, can be made."""
    rng = case.rng
    experts = EXPERTS.get(values["model_type"], "num_experts")
    counts = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        experts,
        "num_experts_per_tok",
    ]
    key, bad = rng.choice(
        [
            (rng.choice(counts), rng.choice([0, -1, "32", 1.5, [1], {"a": 1}, NAN, INF, True, 2**70])),
            (rng.choice(counts[:3]), None),
            ("rms_norm_eps", rng.choice(["1e-05", [1e-5], NAN, INF, -1e-5, {"a": 1}])),
            ("initializer_range", rng.choice(["0.02", [0.02], NAN])),
            ("attention_dropout", rng.choice([2, -0.1, "0.1", NAN, [0]])),
            ("hidden_act", rng.choice(["nonsense", 3, [], ""])),
            ("model_type", rng.choice(["nonsense-9", 3, None, "", ["olmoe"], {"a": 1}])),
            ("num_experts_per_tok", 99),
            ("num_key_value_heads", rng.choice([3, 0, -1, "4", [4]])),
            ("tie_word_embeddings", rng.choice(["yes", [True], 3.5])),
            ("max_position_embeddings", rng.choice([0, -5, "512", 512.5, [512], NAN])),
            ("rope_parameters", rng.choice([{"rope_type": "nonsense", "rope_theta": 1e4}, 3, "text", [1]])),
            ("rope_parameters", {"rope_type": "default", "rope_theta": rng.choice([0, -1, "10000", NAN])}),
        ]
    )
    return {key: bad}


@mutates("model config", "other values", False, *PLANNED)
def _plan_harmless(case: Case) -> str:
    file = config_file(case)
    return changed_config(case, file, harmless_values(case, case.read(file)))


@mutates("model config", "other values", False, "check")
def _check_harmless(case: Case) -> str:
    return changed_config(case, own_config(case), harmless_values(case, case.read(own_config(case))))


@mutates("model config", "wrong value", True, *PLANNED)
def _plan_harmful(case: Case) -> str:
    file = config_file(case)
    return changed_config(case, file, harmful_values(case, case.read(file)))


@mutates("model config", "wrong value", True, "check")
def _check_harmful(case: Case) -> str:
    return changed_config(case, own_config(case), harmful_values(case, case.read(own_config(case))))


@mutates("model config", "another network than that of the weights", True, "check")
def _other_sizes(case: Case) -> str:
    rng = case.rng
    key = rng.choice(
        ["hidden_size", "moe", "num_hidden_layers", "vocab_size", "num_experts", "num_attention_heads"]
    )
    if key == "moe":
        key = "intermediate_size"
    sizes = {
        "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": rng.choice([2, 5]),
        "vocab_size": 300, "num_experts": rng.choice([4, 16]), "num_attention_heads": 8,
    }  # fmt: skip
    return changed_config(case, own_config(case), {key: sizes[key]})


@mutates("model config", "quantized", True, "check")
def _quantized(case: Case) -> str:
    how = {
        "quant_method": case.rng.choice(["gptq", "awq", "fp8", "bitsandbytes"]),
        "bits": 4,
        "load_in_4bit": True,
    }
    return changed_config(case, own_config(case), {"quantization_config": how})


damage_json("model config", PLANNED, config_file)
damage_json("model config", ("check",), own_config)
lose_file("model config", ("check",), own_config)

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


READ_BY = ("check", "merge")
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
