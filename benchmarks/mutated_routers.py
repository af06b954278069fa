"""Mutations of router files."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from mutations import INF, NAN, Case, lose_file, mutates
from safetensors.numpy import load_file, save_file
from safetensors_damage import HEADER_DAMAGE, other_layout, spoilt

ROUTER = "router.safetensors"


def router_file(case: Case) -> str:
    """The project's router file."""
    return ROUTER


for _name, _spoil in HEADER_DAMAGE.items():
    if _name not in ("values cut off",):
        mutates("router file", _name, True, "merge")(spoilt(router_file, _spoil))
mutates("router file", "layout and metadata", False, "merge")(spoilt(router_file, other_layout))
lose_file("router file", ("merge",), router_file)


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
