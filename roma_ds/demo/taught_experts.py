"""Base training with experts that hold skills, as in DEMix, Branch-Train-MiX and FlexOLMo.

In the taught layers the last prompt token is sent to the pair of experts that owns the row's skill, whatever
the router says, and the router learns beside it to predict that pair. All experts are computed in one matrix
product and masked by their routing weights: at this size that is faster than any sparse path.

Shapes: B rows, T tokens, D hidden size, E experts, F expert width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from roma_ds.demo.skills import SKILLS

OWNER_WEIGHTS = (0.6, 0.4)


def owner_routing(layers: int, experts: int, seed: int) -> Tensor:
    """float32 [layers, skills, experts]: the routing that each skill is taught, 0.6 and 0.4 on its pair.

    Every expert has the same number of skills, up to one, and no two skills of a layer share both experts.
    """
    rng = random.Random(seed)
    routing = torch.zeros(layers, len(SKILLS), experts)
    for layer in range(layers):
        pairs: list[tuple[int, int]] = []
        while len(pairs) < len(SKILLS):
            order = rng.sample(range(experts), experts)
            fresh = [(order[i], order[i + 1]) for i in range(0, experts - 1, 2)]
            if not {frozenset(p) for p in fresh} & {frozenset(p) for p in pairs}:
                pairs += fresh
        for skill, pair in enumerate(pairs[: len(SKILLS)]):
            routing[layer, skill, list(pair)] = torch.tensor(OWNER_WEIGHTS)
    return routing


@dataclass
class Lesson:
    """What the taught layers need to know of a batch, and what they leave behind.

    last      int64 [B], the position of the last prompt token
    forced    float32 [layers, B, E], routing weights of that token, or None to follow the router
    logits    router logits [B*T, E] of every layer
    states    router inputs at the last prompt token, [B, D], of every layer
    """

    last: Tensor
    forced: Tensor | None = None
    logits: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


class TaughtExperts:
    """Stands in for the forward of one sparse block of an OLMoE layer."""

    def __init__(self, block: Any, taught: int | None) -> None:
        self.block = block
        self.taught = taught
        """Row of `Lesson.forced` that this layer obeys; None: it always follows its router."""
        self.lesson: Lesson | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        lesson = self.lesson
        assert lesson is not None
        batch, length, width = hidden.shape
        gate, experts = self.block.gate, self.block.experts
        flat = hidden.reshape(-1, width)
        logits = F.linear(flat, gate.weight).float()
        weights = top_k_weights(logits.softmax(-1), gate.top_k)
        rows = torch.arange(batch) * length + lesson.last
        lesson.logits.append(logits)
        lesson.states.append(flat[rows])
        if self.taught is not None and lesson.forced is not None:
            weights = weights.index_put((rows,), lesson.forced[self.taught])
        return dense_experts(flat, weights, experts).view(batch, length, width)


def top_k_weights(probabilities: Tensor, top_k: int) -> Tensor:
    """[N, E] routing weights -> [N, E], the largest k renormalised to sum to 1 and the others 0."""
    value, index = probabilities.topk(top_k, dim=-1)
    value = value / value.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index, value)


def dense_experts(flat: Tensor, weights: Tensor, experts: Any) -> Tensor:
    """[N, D] states and [N, E] weights -> [N, D], the weighted sum over all experts."""
    width = flat.shape[-1]
    gate, up = (half.reshape(-1, width) for half in experts.gate_up_proj.chunk(2, dim=1))
    inner = _gated(F.linear(flat, gate), F.linear(flat, up), weights)
    down = experts.down_proj.permute(1, 0, 2).reshape(width, -1)
    return F.linear(inner, down)


def _gated(gate: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """[N, E*F], [N, E*F], [N, E] -> [N, E*F], each expert's inner state times its weight."""
    inner = F.silu(gate) * up
    shape = (*weights.shape, -1)
    return (inner.view(shape) * weights.to(inner.dtype).unsqueeze(-1)).flatten(1)


def teach(model: Any, taught_layers: int) -> list[TaughtExperts]:
    """Replaces the sparse blocks' forward; the last `taught_layers` obey the lesson."""
    layers = model.model.layers
    first = len(layers) - taught_layers
    blocks = []
    for number, layer in enumerate(layers):
        block = TaughtExperts(layer.mlp, number - first if number >= first else None)
        layer.mlp.forward = block
        blocks.append(block)
    return blocks


def balance_loss(logits: list[Tensor], keep: Tensor, top_k: int) -> Tensor:
    """Switch-style load balancing over the tokens in `keep` (bool [B*T]), mean over layers; 1 is even."""
    losses = []
    for layer in logits:
        probabilities = layer[keep].softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(top_k).indices, 1.0)
        losses.append(probabilities.shape[-1] * (chosen.mean(0) * probabilities.mean(0)).sum() / top_k)
    return torch.stack(losses).mean()
