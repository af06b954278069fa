"""Parameters of a network by what they are for, total and active; no weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

from roma_ds.families.detection import family_of
from roma_ds.families.family import Family

Kind = Literal[
    "embedding",
    "attention",
    "dense MLP",
    "routed experts",
    "shared experts",
    "router",
    "norm",
    "head",
    "streams",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Counted:
    """One parameter of a network."""

    name: str
    """Path in the network."""
    kind: Kind
    """Gates of shared experts count as shared experts, norms inside attention as norm, correction biases as
    router, and linear attention, state spaces and convolutions as attention. Streams are what begins or joins
    residual streams outside the layers."""
    layer: int | None
    """Number of its decoder layer in this network; None outside the layers."""
    numel: int
    """Number of values, of the whole parameter where ZeRO-3 has partitioned it."""


def counted(network: Any) -> tuple[Counted, ...]:
    """Every parameter of `network` (a transformers causal LM, or a span of one), in its own order.

    Tied weights are one parameter, the embedding. Raises UserError where the model is none of a known family,
    ValueError for a parameter whose purpose does not follow from its place.
    """
    family = family_of(network.config)
    modules = dict(network.named_modules())
    found = []
    for name, parameter in network.named_parameters():
        match = re.match(rf"{re.escape(family.layers)}\.(\d+)\.(.*)", name)
        inside, layer = (match[2], int(match[1])) if match else (None, None)
        found.append(
            Counted(
                name,
                _kind(
                    family, modules, name, inside, layer is None or family.mixes_tokens(network.config, layer)
                ),
                layer,
                prod(getattr(parameter, "ds_shape", parameter.shape)),
            )
        )
    return tuple(found)


def _kind(family: Family, modules: dict[str, Any], name: str, inside: str | None, mixes: bool) -> Kind:
    """What a parameter is for; inside: its name within a decoder layer; mixes: whether that mixes tokens."""
    owner = modules[name.rpartition(".")[0]]
    if name.startswith(f"{family.embedding}."):
        return "embedding"
    if name.startswith(f"{family.head}."):
        return "head"
    if "Norm" in type(owner).__name__:
        return "norm"
    if inside is None and name in family.streams:
        return "streams"
    if inside is None:
        raise ValueError(f"{name} is none of the embedding, the layers, a norm or the head")
    parts = name.split(".")
    above = [modules[".".join(parts[:end])] for end in range(1, len(parts))]
    if any(map(family.is_router, above)):
        return "router"
    if parts[-1] in family.frozen_block_parts:
        return "router"
    if any(inside.startswith(f"{module}.") for module in family.shared):
        return "shared experts"
    if _is_stack(owner):
        return "routed experts"
    mixers = (family.attention, *family.mixers)
    return "attention" if mixes and inside.startswith(tuple(f"{path}." for path in mixers)) else "dense MLP"


def _is_stack(owner: Any) -> bool:
    """Whether a module has the weights of all routed experts of a layer, and maybe their biases.

    A convolution's weight has three dimensions too, of which one may be 1. DBRX has the rows of all experts
    one after the other.
    """
    if "Conv" in type(owner).__name__:
        return False
    shapes = [getattr(weight, "ds_shape", weight.shape) for weight in owner.parameters(recurse=False)]
    return type(owner).__name__ == "DbrxExpertGLU" or any(len(s) == 3 and 1 not in s for s in shapes)


def by_kind(parameters: Iterable[Counted]) -> dict[Kind, int]:
    """Number of values of each kind, in the order of `KINDS`; 0 where there are none."""
    totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for parameter in parameters:
        totals[parameter.kind] += parameter.numel
    return totals


def active_parameters(network: Any, embedding: bool = True) -> int:
    """Values that one token meets: all but those of the routed experts that it does not go to.

    embedding: count the token embedding, of which a token reads one row; where the head is tied to it, it is
    counted either way. Raises as `counted` does.
    """
    found, weights = counted(network), dict(network.named_parameters())
    totals = by_kind(found)
    family, config = family_of(network.config), network.config
    networks, routed = family.experts(config) - family.zeros(config), 0
    for one in (one for one in found if one.kind == "routed experts"):
        shape = getattr(weights[one.name], "ds_shape", weights[one.name].shape)
        # Some stacks have unused rows for choices that are no expert.
        met, left = divmod(one.numel * family.top_k(config), shape[0] if len(shape) == 3 else networks)
        assert left == 0, "experts of one model differ in size"
        routed += met
    tied = totals["head"] == 0
    dropped = 0 if embedding or tied else totals["embedding"]
    return sum(totals.values()) - totals["routed experts"] + routed - dropped
