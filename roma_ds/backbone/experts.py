"""Frozen experts on a CPU: one expert after the other, while its tokens are in the processor's cache.

transformers' grouped product sorts, copies and weighs all token-expert pairs at once, which on a CPU costs as
much as the products themselves. Weights that never learn need no gradient, so little has to be kept: the
first product, or where only the router learns its result.

Shapes: T tokens, k experts a token, n tokens of one expert, H hidden, I width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

FROZEN_EXPERTS = "roma_ds_frozen"
ROWS = 16
"""Least rows of a product in bfloat16: what a processor's tiles take at once."""


def _groups(index: torch.Tensor, experts: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(expert, pairs [n], tokens [n]) of every expert that is chosen; pairs are places in `index` [T, k]."""
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    start = 0
    for expert, count in enumerate(torch.bincount(flat, minlength=experts).tolist()):
        if count:
            pairs = order[start : start + count]
            yield expert, pairs, torch.div(pairs, index.shape[1], rounding_mode="floor")
            start += count


def rows_run(count: int) -> int:
    """The rows that a product of `count` rows is padded to: few different numbers, close above it."""
    step = max(ROWS, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows [n, a] times weight [a, b].

    In bfloat16 oneDNN compiles code for every n and keeps the last thousand, some 400 MB for experts whose
    share of tokens always differs; padded to few different n it is some 30 MB, and no slower.
    """
    count = len(rows)
    if rows.dtype != torch.bfloat16 or rows_run(count) == count:
        return rows @ weight
    return (F.pad(rows, (0, 0, 0, rows_run(count) - count)) @ weight)[:count]


class _FrozenExperts(torch.autograd.Function):
    """sum over a token's experts of weight * down(silu(gate(x)) * up(x)); gradients to x and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        index: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
    ) -> torch.Tensor:
        through, routed = ctx.needs_input_grad[:2]
        total = torch.zeros_like(hidden, dtype=_sums(hidden))
        flat = weights.reshape(-1, 1)
        groups = list(_groups(index, len(gate_up)))
        kept = []
        for expert, pairs, tokens in groups:
            product = _product(hidden.index_select(0, tokens), gate_up[expert].T)
            gate, up = product.chunk(2, dim=-1)
            result = _product(F.silu(gate) * up, down[expert].T)
            total.index_add_(0, tokens, (result * flat.index_select(0, pairs)).to(total.dtype))
            kept.append(product if through else result if routed else None)
        ctx.save_for_backward(weights)
        ctx.groups, ctx.kept = groups, kept
        # The parameters themselves: under ZeRO-3 they are gathered again when the backward pass comes here.
        ctx.parameters = (gate_up, down)
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        through, routed = ctx.needs_input_grad[:2]
        (weights,) = ctx.saved_tensors
        gate_up, down = ctx.parameters
        flat = weights.reshape(-1, 1)
        to_hidden = torch.zeros_like(gradient, dtype=_sums(gradient)) if through else None
        to_weights = torch.zeros_like(flat) if routed else None
        for (expert, pairs, tokens), kept in zip(ctx.groups, ctx.kept, strict=True):
            mine = gradient.index_select(0, tokens)
            if to_hidden is None:
                if to_weights is not None:
                    to_weights[pairs] = torch.linalg.vecdot(mine, kept)[:, None].to(flat.dtype)
                continue
            gate, up = kept.chunk(2, dim=-1)
            inner = _product(mine, down[expert])
            sigmoid = torch.sigmoid(gate)
            active = gate * sigmoid
            to_active = inner * up
            if to_weights is not None:
                to_weights[pairs] = torch.linalg.vecdot(to_active, active)[:, None].to(flat.dtype)
            scale = flat.index_select(0, pairs)
            # The slope of silu is sigmoid + active - active * sigmoid.
            slope = torch.addcmul(sigmoid + active, active, sigmoid, value=-1)
            product = torch.empty_like(kept)
            to_gate, to_up = product.chunk(2, dim=-1)
            torch.mul(to_active.mul_(scale), slope, out=to_gate)
            torch.mul(inner.mul_(scale), active, out=to_up)
            to_hidden.index_add_(0, tokens, _product(product, gate_up[expert]).to(to_hidden.dtype))
        return (
            None if to_hidden is None else to_hidden.to(gradient.dtype),
            None if to_weights is None else to_weights.reshape(weights.shape),
            None,
            None,
            None,
        )


def _sums(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _fits(module: Any, hidden: torch.Tensor) -> bool:
    """Whether the experts are what `_FrozenExperts` computes: SwiGLU, no bias, frozen, on a CPU."""
    from transformers.activations import ACT2FN
    from transformers.integrations import moe

    return (
        hidden.device.type == "cpu"
        and module.has_gate
        and module.is_concatenated
        and not (module.has_bias or module.is_transposed or module.has_post_expert_norm)
        and not module._is_expert_parallel
        and type(module)._apply_gate is moe._default_apply_gate
        and type(module.act_fn) is type(ACT2FN["silu"])
        and not (module.gate_up_proj.requires_grad or module.down_proj.requires_grad)
    )


def frozen_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """transformers' experts interface: [T, H], [T, k], [T, k] -> [T, H], of the same dtype.

    Experts of another kind, or on another device, go to transformers' grouped product.
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    if not _fits(module, hidden_states):
        grouped: torch.Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return grouped
    result: torch.Tensor = _FrozenExperts.apply(
        hidden_states, top_k_weights, top_k_index, module.gate_up_proj, module.down_proj
    )
    return result


def use_frozen_experts(network: Any) -> None:
    """Let a transformers model with fused experts run them by `frozen_experts`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(FROZEN_EXPERTS, frozen_experts)
    network.config._experts_implementation = FROZEN_EXPERTS
