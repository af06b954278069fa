"""The product that gives logits, for a few rows on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

MOST_ROWS = 16
PART_BYTES = 2**18


class _FewRows(torch.autograd.Function):
    """hidden [A, H] times the transpose of a frozen weight [V, H], part of the vocabulary by part.

    A BLAS packs the whole weight for it otherwise, which for 8 rows took twice as long as the product.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # The parameter itself: under ZeRO-3 it is gathered again when the backward pass comes here.
        ctx.weight = weight
        rows = max(1, PART_BYTES // (hidden.shape[-1] * hidden.element_size()))
        return torch.cat([hidden @ part.T for part in weight.split(rows)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.weight, None


def _forward(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    rows = hidden.shape[:-1].numel()
    few = 1 < rows <= MOST_ROWS and hidden.dtype == torch.float32 and hidden.device.type == "cpu"
    if not few or head.weight.requires_grad or head.bias is not None:
        own: torch.Tensor = type(head).forward(head, hidden)
        return own
    flat = hidden if hidden.dim() == 2 else hidden.reshape(rows, -1)
    logits: torch.Tensor = _FewRows.apply(flat, head.weight)
    return logits if hidden.dim() == 2 else logits.reshape(*hidden.shape[:-1], -1)


def use_frozen_head(head: nn.Module) -> None:
    """Let a linear head run as `_FewRows` where that is faster: [.., H] -> [.., V], of the same dtype."""
    if type(head) is nn.Linear:
        setattr(head, "forward", partial(_forward, head))  # noqa: B010 - mypy takes methods for constants
