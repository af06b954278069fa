"""Memory of one rank, by counting: weights, what ZeRO-3 gathers, router states, activations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

from roma_ds.config.deepspeed_keys import AUTO
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.zero3_fetches import Fetches, Zero3Limits, fetches, held

BYTES = {"float32": 4, "bfloat16": 2}
MASTERS = 12
"""A trained number's float32 copy and AdamW's two moments."""
SCORES = 4
"""Sums over experts and softmaxes are float32."""


@dataclass(frozen=True)
class Setting:
    """What decides the memory of a rank beside the model."""

    zero_stage: int
    world_size: int = 1
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tokens: int = 2048
    """Of a micro-batch."""
    device: Literal["cpu", "cuda"] = "cuda"
    """On a CPU, memory that is allocated and never written does not count, and experts run one by one."""
    reduce_bucket: int = AUTO["zero_optimization.reduce_bucket_size"]
    """Values of the buffer in which ZeRO reduces gradients."""
    limits: Zero3Limits = field(default_factory=Zero3Limits)

    @property
    def itemsize(self) -> int:
        """Bytes of a frozen weight."""
        return BYTES[self.dtype]

    @property
    def stage(self) -> int:
        """The stage that runs: bfloat16 at stage 0 is run as stage 1."""
        return 1 if self.zero_stage == 0 and self.dtype == "bfloat16" else self.zero_stage


@dataclass(frozen=True)
class RankBytes:
    """Bytes of one rank."""

    weights: int
    """Held all the time: the network, or at ZeRO-3 this rank's share and the weights that stay whole."""
    gathered: int
    """Most that ZeRO-3 holds of gathered weights at one time."""
    routers: int
    """Gradients, float32 copies and moments of the trained routers, and the buffer that reduces them."""
    activations: int
    """What waits for the backward pass, and the largest values at work."""
    resting: int
    """Before the first step: weights as loaded."""

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.gathered + self.routers + self.activations


def training_bytes(sizes: ModelSizes, setting: Setting) -> RankBytes:
    """A rank that trains the routers that `sizes` marks, on the whole model or a part of it."""
    item, world = setting.itemsize, setting.world_size
    activations = training_activations(sizes, setting)
    if setting.stage < 3:
        weights = sizes.held * item
        return RankBytes(weights, 0, _router_states(sizes, setting), activations, weights)
    shares, whole = held(sizes, setting.limits, world)
    found = fetches(sizes, setting.limits, world, backward=True)
    return RankBytes(
        (shares + whole) * item,
        _gathered(found, setting),
        _router_states(sizes, setting),
        activations,
        shares * item,
    )


def _gathered(found: Fetches, setting: Setting) -> int:
    """Between CPU ranks gloo receives each call in a buffer of its own, with two threads."""
    return (found.peak + (found.arriving if setting.device == "cpu" else 0)) * setting.itemsize


def _router_states(sizes: ModelSizes, setting: Setting) -> int:
    trained, world, item = sizes.trained, setting.world_size, setting.itemsize
    if setting.stage == 0:
        return trained * (item + 8)
    share = -(-trained // world)
    # Gradients as autograd makes them, the share that is kept, and at stage 3 a flat copy of the weights.
    gradients = trained * item + share * (4 if setting.stage == 3 else item)
    bucket = trained if setting.device == "cpu" else setting.reduce_bucket
    return gradients + share * (MASTERS + (item if setting.stage == 3 else 0)) + bucket * item


def training_activations(sizes: ModelSizes, setting: Setting) -> int:
    """What a micro-batch keeps for the backward pass, and the most that is at work beside it; an estimate.

    In layers above the first trained one: the inputs of all norms, queries, keys, values and what attention
    gives, or in its place what the products of linear attention, a state space or a convolution give, and
    the first product of each chosen expert. In the first one: the experts' results. In the last one, keys
    and values of all tokens; its other values are few. Layers below keep nothing. What every trained router
    saw is kept as well.
    """
    item, tokens = setting.itemsize, setting.tokens
    trained = [module.layer for module in sizes.modules if any(weight.trained for weight in module.weights)]
    first = min(layer for layer in trained if layer is not None)
    attention = sizes.attention
    before_norms = attention.queries + attention.keys if sizes.inner_norms else 0
    attending = 2 * attention.queries + attention.keys + attention.values + before_norms
    pairs = sizes.top_k * tokens
    # On a device all chosen experts run at once, and their inputs and results are kept too.
    experts = 2 * sizes.expert_width + (0 if setting.device == "cpu" else 2 * sizes.hidden)
    in_first = pairs * sizes.hidden if first < sizes.layers - 1 else 0
    last = tokens * (attention.keys + attention.values + 2 * sizes.hidden + before_norms)
    seen = sum(weight.trained for weight in sizes.weights) * tokens * sizes.hidden
    total = in_first + last + seen
    for layer in range(first + 1, sizes.layers - 1):
        mixing = attending if sizes.with_pairs[layer] else sizes.in_layer(layer, "attention") // sizes.hidden
        total += tokens * (2 * sizes.hidden + mixing)
        total += pairs * experts if layer in sizes.moe_layers else 0
    return total * item + working_bytes(sizes, setting)


def working_bytes(sizes: ModelSizes, setting: Setting) -> int:
    """The largest values at work in one layer and not kept: hidden states in float32, at both ends of it."""
    return 3 * setting.tokens * sizes.hidden * SCORES


def frozen_pass_bytes(sizes: ModelSizes, setting: Setting) -> RankBytes:
    """A rank of the `zero3` engine: the whole network, held below ZeRO-3, shared and gathered at it."""
    item, world = setting.itemsize, setting.world_size
    working = working_bytes(sizes, setting)
    if setting.zero_stage < 3 or world == 1:
        return RankBytes(sizes.held * item, 0, 0, working, sizes.held * item)
    shares, whole = held(sizes, setting.limits, world)
    found = fetches(sizes, setting.limits, world, backward=False)
    return RankBytes((shares + whole) * item, _gathered(found, setting), 0, working, shares * item)


def stream_bytes(sizes: ModelSizes, setting: Setting, activation_bytes: int) -> RankBytes:
    """A rank of the `stream` engine: two neighbouring steps, and hidden states up to `activation_bytes`."""
    ends = (sizes.outside("embedding"), sizes.head + sizes.outside("norm"))
    steps = [ends[0], *(sizes.in_layer(layer) for layer in range(sizes.layers)), ends[1]]
    two = max(one + other for one, other in itertools.pairwise(steps)) * setting.itemsize
    return RankBytes(two, 0, 0, activation_bytes + working_bytes(sizes, setting), 0)
