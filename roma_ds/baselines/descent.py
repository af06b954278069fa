"""Gradient descent on routing weights themselves, each sample on its own.

Shapes: B samples, M layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Descent:
    """How to descend."""

    lr: float
    steps: int
    """Most steps."""
    final_lr: float | None = None
    """The learning rate falls to it by a cosine; None keeps it."""
    tolerance: float | None = None
    """Stop when the mean loss moves by less than this in a step; None takes all steps."""
    core_experts: int | None = None
    """Only the weights of so many experts, the largest at the start, move; None moves all."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if self.final_lr is None or self.steps < 2:
            return self.lr
        share = step / (self.steps - 1)
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


ORACLE = Descent(lr=0.1, steps=25, tolerance=1e-3)
"""Oracle routing (eq 1); the procedure is the project's, the paper gives none."""
C3PO = Descent(lr=1e-2, steps=10, final_lr=1e-5, core_experts=20)
"""As the C3PO paper sets its neighbourhood gradient descent."""


def descend(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, descent: Descent
) -> tuple[torch.Tensor, int]:
    """Routing weights [B, M, E] after projected gradient descent from `start`, and the steps taken.

    loss: [B] from weights [B, M, E], each sample's own. After a step negative weights become 0 and a layer's
    weights are divided by their sum.
    """
    routing = start.detach().clone()
    moved = torch.ones_like(routing)
    if descent.core_experts is not None and descent.core_experts < routing.shape[-1]:
        core = routing.topk(descent.core_experts, dim=-1).indices
        moved = torch.zeros_like(routing).scatter(-1, core, 1.0)
    before, taken = math.inf, 0
    for step in range(descent.steps):
        with torch.enable_grad():
            routing.requires_grad_(True)
            losses = loss(routing)
            (gradient,) = torch.autograd.grad(losses.sum(), routing)
        with torch.no_grad():
            routing = (routing - descent.rate(step) * gradient * moved).clamp_min(0)
            routing = routing / routing.sum(dim=-1, keepdim=True).clamp_min(1e-6)
        taken += 1
        mean = float(losses.detach().mean())
        if descent.tolerance is not None and abs(before - mean) < descent.tolerance:
            break
        before = mean
    return routing.detach(), taken
