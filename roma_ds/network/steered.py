"""Routing weights given from outside at the tokens whose routing is read, and the gradient that reaches them.

Shapes: B sequences, N routing positions a sequence, M MoE layers steered, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from roma_ds.errors import UserError
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.network.routing_weights import routing_weights
from roma_ds.sequences.batches import Batch

ALIKE = 2e-2
"""Share of the largest weight within which rounding to bfloat16 may move one."""


def top_k_weights(
    routing: torch.Tensor, top_k: int, renormalised: bool, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts that routing weights [n, E] choose, and what they count: int64 and float32 [n, k]."""
    values, index = routing.topk(top_k, dim=-1)
    if renormalised:
        values = values / values.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return index, values * factor


class Steering:
    """Lets a network on one device run with routing weights of the caller's in some layers.

    Going forward the k largest of the given weights choose the experts, as the router would. Going back
    every expert's weight gets the gradient of the dense mixture (straight-through): under the top-k alone
    those that are not chosen would get none, and could never come in.
    """

    def __init__(self, routed: RoutedLM, layers: Sequence[int]) -> None:
        """layers: those that are steered, in the order of the given weights.

        Raises UserError for routers that do not score by a softmax or may choose what is no expert, and for
        experts that are not one module beside their router. The first pass raises it for routers that do not
        choose the largest, or weigh them otherwise.
        """
        self.routed = routed
        self.layers = tuple(layers)
        layout = routed.layout
        if layout.family.scoring != "softmax":
            raise self._refused(f"their routers score by {layout.family.scoring}")
        if layout.zero_experts:
            raise self._refused("a token may go to what is no expert")
        self._modules: dict[int, nn.Module] = {}
        for site in layout.sites:
            if site.layer in self.layers:
                block = routed.network.get_submodule(site.module.rpartition(".")[0])
                experts = getattr(block, "experts", None)
                if experts is None or isinstance(experts, nn.ModuleList):
                    raise UserError(
                        f"the experts of layer {site.layer} are not one module beside their router",
                        "leave oracle routing, Oracle Tuning and C3PO out for this model",
                    )
                self._modules[site.layer] = experts
        self._given: torch.Tensor | None = None
        self._positions: torch.Tensor
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rule: tuple[bool, float] | None = None
        self._hooks = []
        for layer, module in self._modules.items():
            self._hooks += [
                module.register_forward_pre_hook(self._choose(layer)),
                module.register_forward_hook(self._let_gradient_pass(layer)),
            ]

    def _refused(self, reason: str) -> UserError:
        name = self.routed.layout.family.name
        return UserError(
            f"routing of {name} models cannot be given from outside: {reason}",
            "leave oracle routing, Oracle Tuning and C3PO out for this model",
        )

    def close(self) -> None:
        """The network routes by its routers again."""
        for hook in self._hooks:
            hook.remove()

    def forward(self, batch: Batch, routing: torch.Tensor, device: torch.device) -> RoutedOutput:
        """One pass with weights [B, M, E] at every routing position of a sequence; rows sum to 1.

        Runs under torch's own gradient mode. Elsewhere, and in other layers, the routers decide.
        """
        positions = batch.routing_positions.reshape(-1)
        self._positions = positions.to(device)
        self._given = routing.repeat_interleave(batch.routing_positions.shape[1], dim=0)
        try:
            output: RoutedOutput = self.routed(**batch.inputs(device))
        finally:
            self._given = None
            self._held.clear()
        return output

    def _of(self, layer: int) -> torch.Tensor:
        assert self._given is not None
        return self._given[:, self.layers.index(layer)]

    def _choose(self, layer: int) -> Any:
        def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            if self._given is None:
                return None
            hidden, index, weights = inputs
            if self._rule is None:
                self._rule = self._learn_rule(layer, index, weights)
            rows, given = self.routed.rows_of(layer, self._positions), self._of(layer)
            chosen, values = top_k_weights(given.detach(), index.shape[1], *self._rule)
            self._held[layer] = (hidden, given)
            return (
                hidden,
                index.index_copy(0, rows, chosen.to(index.dtype)),
                weights.index_copy(0, rows, values.to(weights.dtype)),
            )

        return before

    def _let_gradient_pass(self, layer: int) -> Any:
        def after(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            if self._given is None or not self._of(layer).requires_grad:
                return None
            hidden, given = self._held[layer]
            rows = self.routed.rows_of(layer, self._positions)
            everyone = torch.arange(given.shape[1], device=given.device).expand(len(given), -1)
            # Zero in value; its gradient at an expert's weight is that of the expert's whole output.
            nothing = (given - given.detach()).to(output.dtype)
            return output.index_add(0, rows, module.forward(hidden[rows].detach(), everyone, nothing))

        return after

    def _learn_rule(self, layer: int, index: torch.Tensor, weights: torch.Tensor) -> tuple[bool, float]:
        """Whether this model renormalises its k weights, and the factor on them, from what its router did."""
        logits = self.routed.raw_logits[layer].detach()
        own = routing_weights(logits.reshape(len(index), -1), "softmax")
        sums, shares = weights.detach().float().sum(dim=1), own.gather(1, index).sum(dim=1)
        ratios = sums / shares
        if len(sums) < 2:
            rule = (bool((sums - 1).abs().max() < 1e-2), 1.0)
        else:
            spread = [float(values.std() / values.mean()) for values in (sums, ratios)]
            renormalised = spread[0] <= spread[1]
            rule = (renormalised, float((sums if renormalised else ratios).mean()))
        # Without their experts: of two alike either may be chosen.
        by_rule = top_k_weights(own, index.shape[1], *rule)[1].sort(dim=1).values
        by_router = weights.detach().float().sort(dim=1).values
        if float((by_rule - by_router).abs().max()) > ALIKE * float(by_router.max()):
            raise self._refused(
                "their routers do not choose the largest of a softmax, or weigh them otherwise"
            )
        return rule
