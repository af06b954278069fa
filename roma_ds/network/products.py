"""Products in bfloat16 on a processor that has none of its own.

Where oneDNN has no code for them (x86 without AVX-512), torch multiplies element by element, and slowest
where the weight is not transposed, which is how a gradient goes back: 200 times the time of float32.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import nn


def sums_dtype(values: torch.Tensor) -> torch.dtype:
    """float32, or the dtype of `values` where that is wider."""
    return torch.promote_types(values.dtype, torch.float32)


@cache
def lacks_bfloat16() -> bool:
    """Whether torch has no fast product of bfloat16 matrices on this processor, by its own test."""
    try:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:
        return True


def is_slow(values: torch.Tensor) -> bool:
    """Whether products of `values` are better taken in float32."""
    return values.dtype == torch.bfloat16 and values.device.type == "cpu" and lacks_bfloat16()


def by_float32(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [..., a] times weight [a, b] (plus bias [b]) in float32, rounded once to the dtype of `rows`.

    Holds a copy of the weight in float32 meanwhile.
    """
    total = rows.float() @ weight.float()
    return (total if bias is None else total.add_(bias)).to(rows.dtype)


def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows [..., a] times weight [a, b], by whichever way is the faster one here."""
    return by_float32(rows, weight) if is_slow(rows) else rows @ weight


class _FrozenLinear(torch.autograd.Function):
    """hidden [..., a] times the transpose of weight [b, a], plus bias; gradient to hidden."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        # The parameter itself: under ZeRO-3 it is gathered again when the backward pass comes here.
        ctx.weight = weight
        return by_float32(hidden, weight.T, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return by_float32(gradients[0], ctx.weight), None, None


def _forward(linear: Any, hidden: torch.Tensor) -> torch.Tensor:
    if not is_slow(hidden):
        result: torch.Tensor = type(linear).forward(linear, hidden)
    elif linear.weight.requires_grad or (linear.bias is not None and linear.bias.requires_grad):
        # The same values as when it was frozen, a router's for one, and autograd's own gradients.
        result = by_float32(hidden, linear.weight.T, linear.bias)
    else:
        result = _FrozenLinear.apply(hidden, linear.weight, linear.bias)
    return result


def use_linears(network: Any) -> None:
    """Let linear layers in bfloat16 multiply in float32 where `lacks_bfloat16`; elsewhere nothing changes.

    The output embedding is left to `use_frozen_head`: a copy of it in float32 is large, and its rows are few.
    """
    if not lacks_bfloat16():
        return
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    for module in network.modules():
        if type(module) is nn.Linear and module is not head:
            setattr(module, "forward", partial(_forward, module))  # noqa: B010 - mypy takes methods for constants
