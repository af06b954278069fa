"""A causal LM whose forward returns logits at chosen positions and the live routing weights.

Shapes: B sequences, L tokens, T predicted tokens, M MoE layers read, E experts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.backbone.batches import Batch
from roma_ds.families import MoELayout


@dataclass
class RoutedOutput:
    """What one forward pass gives; everything on the model's device, with gradient where it flows."""

    logits: torch.Tensor
    """float32 [T, V], at the batch's answer positions"""
    routing: torch.Tensor
    """float32 [B, M, E], softmax over all routed experts, averaged over the chosen prompt tokens"""
    load: torch.Tensor
    """float32 [M, E], share of the top-k choices of non-pad tokens that fall on each expert"""
    router_logits: tuple[torch.Tensor, ...]
    """M tensors [B * L, E] in the layers' order, as the routers returned them"""
    router_inputs: tuple[torch.Tensor, ...]
    """M tensors [B * L, hidden], detached"""


class RoutedLM(nn.Module):
    """Wraps a causal LM so that one root forward serves collection, training and evaluation.

    Being the engine's root module matters under ZeRO-3: calling parts of the network beside the
    engine's forward invalidates DeepSpeed's prefetch trace.
    """

    def __init__(self, network: Any, layout: MoELayout, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.layout = layout
        self.layers = layers
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for site in layout.sites:
            if site.layer in layers:
                router = network.get_submodule(site.module)
                router.register_forward_hook(self._recorder(site.layer))

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            hidden = inputs[0].detach()
            logits, _, indices = output
            self._seen[layer] = (hidden.reshape(-1, hidden.shape[-1]), logits, indices)

        return record

    def routers(self) -> dict[int, nn.Parameter]:
        """The weight [experts, hidden] of each layer's router read by this module, by layer number."""
        return {
            site.layer: self.network.get_submodule(site.module).weight
            for site in self.layout.sites
            if site.layer in self.layers
        }

    def forward(self, batch: Batch) -> RoutedOutput:
        """Logits at the answer positions and routing at the chosen prompt positions of `batch`."""
        self._seen.clear()
        hidden = self.network.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        wanted = hidden[batch.answer_sequence, batch.answer_position].contiguous()
        logits = self.network.get_output_embeddings()(wanted).float()

        width = batch.input_ids.shape[1]
        starts = torch.arange(len(batch.rows), device=hidden.device)[:, None] * width
        flat = (starts + batch.routing_positions).reshape(-1)
        present = batch.attention_mask.reshape(-1).bool()
        routing, load = [], []
        for layer in self.layers:
            _, router_logits, indices = self._seen[layer]
            chosen = torch.softmax(router_logits[flat].float(), dim=-1)
            chosen = chosen.reshape(*batch.routing_positions.shape, -1)
            routing.append((chosen * batch.routing_weights[..., None]).sum(dim=1))
            counts = torch.bincount(indices[present].reshape(-1), minlength=chosen.shape[-1]).float()
            load.append(counts / counts.sum())
        output = RoutedOutput(
            logits,
            torch.stack(routing, dim=1),
            torch.stack(load),
            tuple(self._seen[layer][1] for layer in self.layers),
            tuple(self._seen[layer][0] for layer in self.layers),
        )
        self._seen.clear()
        return output
