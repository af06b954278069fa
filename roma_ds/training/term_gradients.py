"""Gradient norms of the task and the manifold term apart, without a second graph.

Every gradient of a router's weight passes through the product that the router computes, so the weight's
gradient is (gradient at the logits)^T times (the router's input). Tensor hooks read it while the engine's
own backward pass runs; a second `torch.autograd.grad` would upset ZeRO-3's bookkeeping.
"""

from __future__ import annotations

from typing import Any

import torch

from roma_ds.comm import World
from roma_ds.network.routed import RoutedLM


class TermGradient:
    """Sums the gradient of one loss term over micro-batches and ranks; [experts, hidden] per layer."""

    def __init__(self, routed: RoutedLM) -> None:
        self.routed = routed
        self.sums: dict[int, torch.Tensor] = {}

    def watch(self) -> None:
        """Call between a forward pass and the backward pass of this term."""
        for layer in self.routed.layers:
            self.routed.raw_logits[layer].register_hook(self._adder(layer, self.routed.router_inputs[layer]))

    def _adder(self, layer: int, hidden: torch.Tensor) -> Any:
        def add(gradient: torch.Tensor) -> None:
            rows = gradient.detach().float().reshape(len(hidden), -1)
            product = rows.T @ hidden.float()
            self.sums[layer] = self.sums[layer] + product if layer in self.sums else product

        return add

    def norm(self, world: World, like: dict[int, Any]) -> float:
        """Euclidean norm over all routers of the mean gradient over ranks. A collective."""
        flat = torch.cat(
            [
                self.sums[layer].flatten()
                if layer in self.sums
                else torch.zeros(getattr(like[layer], "ds_numel", like[layer].numel()), device=world.device)
                for layer in self.routed.layers
            ]
        )
        return float(torch.linalg.vector_norm(world.reduce(flat) / world.size))
