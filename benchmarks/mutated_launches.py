"""Mutations of DeepSpeed JSONs and hostfiles."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from mutations import (
    BOM,
    INF,
    NAN,
    Case,
    as_json,
    at,
    damage_json,
    invalid_utf8,
    lose_file,
    misspelt,
    mutates,
    places,
    put,
)

DS = "ds.json"
SIZES = (
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters", "stage3_max_reuse_distance",
)  # fmt: skip


def write_ds(case: Case, values: Any) -> None:
    """In any layout."""
    case.write(DS, as_json(values, case.rng))


@mutates("DeepSpeed JSON", "other values", False, "check")
def _ds_values(case: Case) -> str:
    values, rng = case.read(DS), case.rng
    changes: list[tuple[str, Any]] = [
        ("steps_per_print", rng.randint(1, 1000)),
        ("gradient_clipping", rng.choice([1, 1.0, "auto"])),
        ("train_micro_batch_size_per_gpu", rng.choice([8, "auto"])),
        ("gradient_accumulation_steps", rng.choice([1, "auto"])),
        ("train_batch_size", rng.choice([8, "auto"])),
        ("zero_optimization.stage", rng.randrange(4)),
        (f"zero_optimization.{rng.choice(SIZES)}", rng.choice([1_000_000, 5e8, 2e7, "auto"])),
        ("zero_optimization.contiguous_gradients", rng.choice([True, False])),
        ("zero_optimization.overlap_comm", rng.choice([True, False])),
        ("bf16.enabled", rng.choice([False, "auto"])),
        ("fp16", {"enabled": False, "loss_scale": 0}),
        ("amp", {"enabled": False, "opt_level": "O1"}),
        ("zero_optimization.offload_param", {"device": "none"}),
        ("zero_optimization.offload_optimizer", {"device": "none"}),
        ("optimizer", {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}),
        ("scheduler", "auto"),
        ("tensor_parallel", {"autotp_size": 1}),
        ("comms_logger", {"enabled": rng.choice([True, False]), "verbose": False}),
        ("log_level", rng.choice(["info", "warning"])),
        ("tensorboard", {"enabled": "auto"}),
        ("csv_monitor", {"enabled": False}),
        ("zero_allow_untested_optimizer", rng.choice([True, False])),
        ("wall_clock_breakdown", False),
        ("dump_state", False),
    ]
    chosen = rng.sample(changes, rng.randint(1, 5))
    for key, value in chosen:
        put(values, key, value)
    write_ds(case, values)
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in chosen)


@mutates("DeepSpeed JSON", "layout", False, "check")
def _ds_layout(case: Case) -> str:
    write_ds(case, case.read(DS))
    return "order, white space"


@mutates("DeepSpeed JSON", "byte-order mark", False, "check")
def _ds_mark(case: Case) -> str:
    case.write(DS, BOM + (case.folder / DS).read_bytes())
    return DS


@mutates("DeepSpeed JSON", "keys left out", False, "check")
def _ds_less(case: Case) -> str:
    values = case.read(DS)
    chosen = case.rng.sample(list(values), case.rng.randint(1, len(values)))
    for key in chosen:
        del values[key]
    write_ds(case, values)
    return ", ".join(chosen)


@mutates("DeepSpeed JSON", "unknown key", True, "check")
def _ds_unknown(case: Case) -> str:
    values = case.read(DS)
    path = case.rng.choice(places(values))
    section = at(values, path)
    key = misspelt(case.rng.choice(list(section) or ["enabled"]), case.rng)
    section[key] = case.rng.choice([1, "auto", True, {"enabled": True}])
    write_ds(case, values)
    return ".".join(map(str, (*path, key)))


@mutates("DeepSpeed JSON", "wrong value", True, "check")
def _ds_wrong(case: Case) -> str:
    values, rng = case.read(DS), case.rng
    size = f"zero_optimization.{rng.choice(SIZES)}"
    key, bad = rng.choice(
        [
            (size, rng.choice(["5e8", "many", 1.5, -1, [1], {"a": 1}, NAN, INF, True])),
            ("zero_optimization.stage", rng.choice([4, -1, "3", True, 1.5, [3], NAN, None, {}])),
            ("zero_optimization", rng.choice([3, "auto", [], True])),
            ("zero_optimization.contiguous_gradients", rng.choice(["nonsense", 7, [True], {}])),
            ("train_micro_batch_size_per_gpu", rng.choice([7, 0, -1, "8", 8.5, True, None, NAN])),
            ("gradient_accumulation_steps", rng.choice([3, 0, "1", 1.5, True, None])),
            ("train_batch_size", rng.choice([999, 0, "8", None, [8]])),
            ("gradient_clipping", rng.choice([0.5, -1, "1.0", NAN, True, None])),
            ("bf16", rng.choice([{"enabled": True}, {"enabled": "yes"}, 3, [True], {"loss_scale": 0}])),
            ("fp16", rng.choice([{"enabled": True}, {"enabled": "yes"}, 3])),
            ("optimizer", {"type": "AdamW", "params": {"lr": 1e-3}}),
            ("optimizer", {"type": "Muon"}),
            ("scheduler", {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}),
            ("tensor_parallel", {"autotp_size": 2}),
            ("data_efficiency", {"enabled": True}),
            ("amp", {"enabled": True}),
            ("elasticity", {"enabled": True}),
            ("zero_optimization.offload_optimizer", {"device": "cpu"}),
            ("zero_optimization.zero_quantized_weights", True),
            ("steps_per_print", rng.choice(["auto", "ten", 0, -1, [1], True, NAN])),
            ("wall_clock_breakdown", rng.choice(["nonsense", 7, [], "auto"])),
            ("tensorboard", rng.choice([{"log_dir": "x"}, 3, [], {"enabled": "perhaps"}])),
            ("compile", {"enabled": True}),
            ("comms_logger", {"enabled": True, "colour": 1}),
            ("activation_checkpointing", {"profile": "perhaps"}),
            ("gradient_allreduce_op", "sum"),
            ("data_types", {"grad_accum_dtype": "fp8"}),
        ]
    )
    put(values, key, bad)
    write_ds(case, values)
    return f"{key}: {str(bad)[:60]}"


@mutates("DeepSpeed JSON", "refused by the optimizer of its stage", True, "check")
def _ds_stage(case: Case) -> str:
    values, rng = case.read(DS), case.rng
    stage, key, value = rng.choice(
        [
            (2, "prescale_gradients", True),
            (3, "prescale_gradients", True),
            (3, "gradient_predivide_factor", 2.0),
            (0, "zero_optimization.offload_param", {"device": "cpu"}),
            (2, "zero_optimization.offload_param", {"device": "cpu"}),
        ]
    )
    put(values, "zero_optimization.stage", stage)
    put(values, key, value)
    write_ds(case, values)
    return f"stage {stage}, {key}"


@mutates("DeepSpeed JSON", "key twice", True, "check")
def _ds_twice(case: Case) -> str:
    text = (case.folder / DS).read_bytes()
    case.write(DS, text.replace(b"{", b'{"steps_per_print": 7, "steps_per_print": 7, ', 1))
    return DS


damage_json("DeepSpeed JSON", ("check",), lambda case: DS)
lose_file("DeepSpeed JSON", ("check",), lambda case: DS)

SLOTS = "hostfile"


def _hosts(rng: random.Random) -> list[str]:
    names = [f"{rng.choice(['worker', 'node', 'gpu'])}-{place}" for place in range(rng.randint(1, 6))]
    return [f"{name}{rng.choice([' ', '  ', chr(9)])}slots={rng.randint(1, 16)}" for name in names]


@mutates("hostfile", "layout", False, "data")
def _host_layout(case: Case) -> str:
    rng, lines = case.rng, _hosts(case.rng)
    done = rng.sample(["comments", "blank lines", "CRLF", "byte-order mark", "spaces", "behind", "no end"], 3)
    if "comments" in done:
        lines.insert(rng.randrange(len(lines) + 1), "# worker-9 slots=none")
    if "blank lines" in done:
        lines.insert(rng.randrange(len(lines) + 1), "   ")
    if "spaces" in done:
        lines = [f" {line}  " for line in lines]
    if "behind" in done:
        lines = [
            f"{line} # eight of them" if "slots=" in line and "#" not in line else line for line in lines
        ]
    end = "\r\n" if "CRLF" in done else "\n"
    text = end.join(lines) + ("" if "no end" in done else end)
    case.write(SLOTS, (BOM if "byte-order mark" in done else b"") + text.encode())
    return ", ".join(done)


HOST_DAMAGE: dict[str, Callable[[list[str], random.Random], bytes | str]] = {
    "no slots": lambda lines, rng: "\n".join(
        [*lines, rng.choice(["worker-9", "worker-9 8", "worker-9 slots"])]
    ),
    "slots that are no number": lambda lines, rng: "\n".join(
        [
            *lines,
            f"worker-9 slots={rng.choice(['', 'all', '-1', '0', '2.5', '8x', '1e3', '0x8', '4,5', '+4'])}",
        ]
    ),
    "a host twice": lambda lines, rng: "\n".join([*lines, rng.choice(lines)]),
    "a word too many": lambda lines, rng: "\n".join(
        [*lines, rng.choice(["worker-9 slots=4 8", "a b slots=4"])]
    ),
    "slots twice": lambda lines, rng: "\n".join([*lines, "worker-9 slots=4 slots=8"]),
    "a space at the equals sign": lambda lines, rng: "\n".join([*lines, "worker-9 slots = 4"]),
    "no name": lambda lines, rng: "\n".join([*lines, "slots=4"]),
    "no host": lambda lines, rng: rng.choice(["", "\n\n", "# none\n", "   \n# worker-0 slots=8\n"]),
    "not UTF-8": lambda lines, rng: invalid_utf8("\n".join(lines).encode(), rng),
    "UTF-16": lambda lines, rng: "\n".join(lines).encode("utf-16"),
    "zeros": lambda lines, rng: bytes(64),
    "JSON": lambda lines, rng: json.dumps({"worker-0": 8}),
}
for _name, _spoil in HOST_DAMAGE.items():

    @mutates("hostfile", _name, True, "data")
    def _host_damage(case: Case, spoil: Any = _spoil) -> str:
        case.write(SLOTS, spoil(_hosts(case.rng), case.rng))
        return (case.folder / SLOTS).read_bytes()[-40:].decode("utf-8", "replace")


lose_file("hostfile", ("data",), lambda case: SLOTS)
