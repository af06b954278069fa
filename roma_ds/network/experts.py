"""Frozen experts on a CPU: one expert after the other, while its tokens are in the processor's cache.

transformers' grouped product sorts, copies and weighs all token-expert pairs at once, which on a CPU costs as
much as the products themselves. Weights that never learn need no gradient, so little has to be kept: the
first product, or where only the router learns its result.

Shapes: T tokens, k experts a token, n tokens of one expert, H hidden, I width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from roma_ds.network.coded_experts import Decoded, decoded, with_stand_ins
from roma_ds.network.products import by_float32, is_slow, sums_dtype
from roma_ds.network.release import return_free_pages

FROZEN_EXPERTS = "roma_ds_frozen"
ROWS = 16
"""Least rows of a product in bfloat16: what a processor's tiles take at once."""


@dataclass(frozen=True)
class _Groups:
    """The chosen token-expert pairs, sorted by expert."""

    pairs: torch.Tensor
    """int64 [T * k], places in the flattened index [T, k]"""
    tokens: torch.Tensor
    """int64 [T * k], the token of each pair"""
    counts: list[int]
    """Pairs of each expert."""

    @classmethod
    def of(cls, index: torch.Tensor, experts: int) -> _Groups:
        flat = index.reshape(-1)
        pairs = torch.argsort(flat, stable=True)
        tokens = torch.div(pairs, index.shape[1], rounding_mode="floor")
        return cls(pairs, tokens, torch.bincount(flat, minlength=experts).tolist())

    def split(self, *values: torch.Tensor) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """(expert, its part of each of `values`, which are in the order of the pairs) where there are any."""
        parts = zip(*(value.split(self.counts) for value in values), strict=True)
        for expert, part in enumerate(parts):
            if self.counts[expert]:
                yield expert, part


def rows_run(count: int) -> int:
    """The rows that a product of `count` rows is padded to: few different numbers, close above it."""
    step = max(ROWS, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows [n, a] times weight [a, b].

    In bfloat16 oneDNN compiles code for every n and keeps the last thousand, some 400 MB for experts whose
    share of tokens always differs; padded to few different n it is some 30 MB, and no slower.
    """
    if is_slow(rows):
        return by_float32(rows, weight)
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
        gate_up: torch.Tensor | Decoded,
        down: torch.Tensor | Decoded,
    ) -> torch.Tensor:
        through, routed = ctx.needs_input_grad[:2]
        total = torch.zeros_like(hidden, dtype=sums_dtype(hidden))
        groups = _Groups.of(index, len(gate_up))
        shares = weights.reshape(-1, 1)[groups.pairs]
        kept = []
        for expert, (tokens, share) in groups.split(groups.tokens, shares):
            product = _product(hidden.index_select(0, tokens), gate_up[expert].T)
            gate, up = product.chunk(2, dim=-1)
            result = _product(F.silu(gate).mul_(up), down[expert].T)
            kept.append(product if through else result if routed else None)
            scaled = result * share if kept[-1] is result else result.mul_(share)
            total.index_add_(0, tokens, scaled.to(total.dtype))
        ctx.groups, ctx.shares, ctx.kept, ctx.shape = groups, shares, kept, weights.shape
        # The parameters themselves: under ZeRO-3 they are gathered again when the backward pass comes here.
        # Experts in codes are decoded again there.
        ctx.parameters = (gate_up, down)
        if isinstance(gate_up, Decoded):
            return_free_pages()
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        through, routed = ctx.needs_input_grad[:2]
        gate_up, down = ctx.parameters
        groups: _Groups = ctx.groups
        to_hidden = torch.zeros_like(gradient, dtype=sums_dtype(gradient)) if through else None
        to_shares = torch.empty_like(ctx.shares)
        parts = groups.split(groups.tokens, ctx.shares, to_shares)
        for (expert, (tokens, share, to_share)), kept in zip(parts, ctx.kept, strict=True):
            mine = gradient.index_select(0, tokens)
            if to_hidden is None:
                to_share.copy_(torch.linalg.vecdot(mine, kept)[:, None])
                continue
            gate, up = kept.chunk(2, dim=-1)
            inner = _product(mine, down[expert])
            active = F.silu(gate)
            to_active = inner * up
            if routed:
                to_share.copy_(torch.linalg.vecdot(to_active, active)[:, None])
            product = torch.empty_like(kept)
            to_gate, to_up = product.chunk(2, dim=-1)
            torch.ops.aten.silu_backward.grad_input(to_active, gate, grad_input=to_gate)
            torch.mul(inner, active, out=to_up)
            rows = _product(product, gate_up[expert]).mul_(share)
            to_hidden.index_add_(0, tokens, rows.to(to_hidden.dtype))
        if isinstance(gate_up, Decoded):
            return_free_pages()
        to_weights = None
        if routed:
            flat = torch.empty_like(to_shares).index_copy_(0, groups.pairs, to_shares)
            to_weights = flat.reshape(ctx.shape)
        return (None if to_hidden is None else to_hidden.to(gradient.dtype), to_weights, None, None, None)


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
        and (module.act_fn is F.silu or type(module.act_fn) is type(ACT2FN["silu"]))
        and not (module.gate_up_proj.requires_grad or module.down_proj.requires_grad)
    )


def frozen_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """transformers' experts interface: [T, H], [T, k], [T, k] -> [T, H], of the same dtype.

    Experts of another kind, or on another device, go to transformers' grouped product. Those that are held in
    codes are decoded at their use, with the same numbers.
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    if not _fits(module, hidden_states):
        module = with_stand_ins(module)
        grouped: torch.Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return grouped
    result: torch.Tensor = _FrozenExperts.apply(
        hidden_states,
        top_k_weights,
        top_k_index,
        decoded(module, "gate_up_proj"),
        decoded(module, "down_proj"),
    )
    return result


def use_frozen_experts(network: Any) -> None:
    """Let a transformers model with fused experts run them by `frozen_experts`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(FROZEN_EXPERTS, frozen_experts)
    network.config._experts_implementation = FROZEN_EXPERTS
