"""RMS norms whose weight never learns: one short gradient, to what goes in.

transformers writes the norm as five tensor operations, and autograd goes back through each of them. With a
frozen weight the gradient is three.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from roma_ds.network.products import sums_dtype


class _FrozenNorm(torch.autograd.Function):
    """weight * (x / sqrt(mean(x^2) + eps)), the mean and the division in float32; gradient to x."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        exact = hidden.to(sums_dtype(hidden))
        squares = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square()
        scale = torch.rsqrt(squares / hidden.shape[-1] + eps)
        ctx.save_for_backward(hidden, scale)
        # The parameter itself: under ZeRO-3 it is gathered again when the backward pass comes here.
        ctx.weight = weight
        normed = exact * scale
        if normed.dtype == hidden.dtype == weight.dtype:
            return normed.mul_(weight)
        return weight * normed.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        hidden, scale = ctx.saved_tensors
        exact = hidden.to(scale.dtype)
        upward = (gradients[0] * ctx.weight).to(scale.dtype)
        # On a CPU `vecdot` would make a tensor of the products first.
        dots = torch.einsum("...h,...h->...", upward, exact)[..., None]
        along = dots * (scale * scale / -hidden.shape[-1])
        return torch.addcmul(upward, exact, along).mul_(scale).to(hidden.dtype), None, None


def _forward(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    if norm.weight.requires_grad:
        own: torch.Tensor = type(norm).forward(norm, hidden)
        return own
    result: torch.Tensor = _FrozenNorm.apply(hidden, norm.weight, norm.variance_epsilon)
    return result


def use_frozen_norms(network: nn.Module, norm_class: str) -> None:
    """Let a transformers model run norms of class `norm_class` as `_FrozenNorm` while they are frozen."""
    for module in network.modules():
        if type(module).__name__ == norm_class:
            module.forward = partial(_forward, module)
