"""Upper bounds of routing on the demo model: descent on the routing weights (eq 1), and the taught pairs.

Both use what no method may use: the right answer, and the skill of the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import OlmoeForCausalLM

from roma_ds.demo.encoding import Batch, at, forward, right
from roma_ds.demo.taught_experts import Lesson, TaughtExperts, top_k_weights


@dataclass(frozen=True)
class Descent:
    """Projected gradient descent, each sample on its own."""

    lr: float = 0.1
    steps: int = 25
    tolerance: float = 1e-3
    """Stop when the mean cross-entropy moves by less than this in a step."""


def oracle_accuracy(
    model: OlmoeForCausalLM, blocks: list[TaughtExperts], batch: Batch, descent: Descent
) -> float:
    """Accuracy after descent on the taught layers' routing weights at the last prompt token.

    The weights start at the router's softmax over all experts; the forward pass keeps the largest k and
    renormalises them. Unselected experts get the gradient of the dense mixture (straight-through), since
    under top-k alone they would get none.
    """
    taught = [number for number, block in enumerate(blocks) if block.taught is not None]
    lesson = Lesson(batch.last)
    with torch.no_grad():
        forward(model, blocks, lesson, batch.ids)
    shape = (*batch.ids.shape, -1)
    routing = torch.stack([at(lesson.logits[i].softmax(-1).view(shape), batch.last) for i in taught])
    top_k = model.config.num_experts_per_tok
    before = float("inf")
    for _ in range(descent.steps):
        routing.requires_grad_(True)
        states = forward(model, blocks, Lesson(batch.last, _straight_through(routing, top_k)), batch.ids)
        logits = model.lm_head(at(states, batch.last))
        losses = F.cross_entropy(logits, batch.answers, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), routing)
        with torch.no_grad():
            routing = (routing - descent.lr * gradient).clamp_min(0)
            routing = routing / routing.sum(-1, keepdim=True).clamp_min(1e-6)
        loss = losses.mean().item()
        if abs(before - loss) < descent.tolerance:
            break
        before = loss
    return routed_accuracy(model, blocks, batch, _straight_through(routing, top_k))


@torch.no_grad()
def routed_accuracy(
    model: OlmoeForCausalLM, blocks: list[TaughtExperts], batch: Batch, forced: Tensor | None
) -> float:
    """Accuracy with the given routing [layers, B, E] at the last prompt token; None: the router's own."""
    states = forward(model, blocks, Lesson(batch.last, forced), batch.ids)
    return right(model.lm_head(at(states, batch.last)), batch).float().mean().item()


def _straight_through(routing: Tensor, top_k: int) -> Tensor:
    """[layers, B, E]: top-k weights going forward, the identity going back."""
    flat = routing.flatten(0, 1)
    hard = top_k_weights(flat, top_k).view_as(routing)
    return hard.detach() + routing - routing.detach()
