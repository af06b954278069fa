"""Experts that are held in codes, where a product needs their values.

Shapes: E experts, S token-expert pairs sorted by expert, [a, b] the weight of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from roma_ds.checkpoint.stored.kept_experts import KEPT, KeptExperts
from roma_ds.network.products import is_slow
from roma_ds.network.release import return_free_pages


class Decoded:
    """A parameter of experts in codes as a list of the weights [a, b] that they stand for."""

    def __init__(self, rows: torch.Tensor, kept: KeptExperts) -> None:
        """rows: the parameter itself, which ZeRO-3 gathers and frees."""
        self.rows, self.kept = rows, kept

    def __len__(self) -> int:
        return self.kept.shape[0]

    def __getitem__(self, expert: int) -> torch.Tensor:
        found = self.kept.expert(self.rows.detach(), expert)
        if found.is_contiguous() or (found.dtype == torch.bfloat16 and not is_slow(found)):
            # oneDNN orders every weight in its own way first, and sums alike whichever way it comes.
            return found
        return found.contiguous()


def decoded(module: Any, name: str) -> torch.Tensor | Decoded:
    """A parameter of fused experts, by whose numbers its weights are found."""
    parameter: torch.Tensor = getattr(module, name)
    kept = getattr(module, KEPT, {}).get(name)
    return parameter if kept is None else Decoded(parameter, kept)


class _GroupedProduct(torch.autograd.Function):
    """rows [S, a] of each expert times its weight [a, b]; gradient to the rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ends: torch.Tensor, weights: StandIn) -> torch.Tensor:
        ctx.ends, ctx.weights = ends, weights
        return weights.times(rows, ends)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.weights.transpose(-2, -1).times(gradients[0], ctx.ends), None, None


class StandIn:
    """Experts in codes in the place of their weights [E, a, b], for transformers' grouped product alone."""

    def __init__(self, weights: Decoded, transposed: bool = False) -> None:
        self._weights, self._transposed = weights, transposed

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoded weights."""
        return self._weights.kept.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are taken."""
        return self._weights.rows.device

    def transpose(self, first: int, second: int) -> StandIn:
        """The same with the last two dimensions exchanged."""
        assert {first, second} == {-2, -1}
        return StandIn(self._weights, not self._transposed)

    def times(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """rows [S, a] of each expert, of which each has those up to its end [E], times its weight: [S, b].

        By the library's own product of one expert after the other.
        """
        shape = self._weights.kept.shape
        found = rows.new_empty(len(rows), shape[1] if self._transposed else shape[2])
        start = 0
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                weight = self._weights[expert][None]
                weight = weight.transpose(-2, -1) if self._transposed else weight
                one = torch.tensor([end - start], dtype=ends.dtype, device=ends.device)
                found[start:end] = F.grouped_mm(rows[start:end], weight, offs=one)
            start = end
        return_free_pages()
        return found

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is not torch._grouped_mm or len(args) != 2 or not isinstance(args[1], cls):
            return NotImplemented
        return _GroupedProduct.apply(args[0], (kwargs or {})["offs"], args[1])


class _WithStandIns:
    """A module of experts with stand-ins in the places of the parameters that are held in codes."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = decoded(self._module, name) if name in getattr(self._module, KEPT) else None
        return StandIn(found) if isinstance(found, Decoded) else getattr(self._module, name)


def with_stand_ins(module: Any) -> Any:
    """The module as transformers' grouped product may use it."""
    return _WithStandIns(module) if getattr(module, KEPT, None) else module
