"""A causal LM whose forward returns logits at chosen positions and the live routing weights.

Shapes: B sequences, L tokens, T predicted tokens, M MoE layers read, E experts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.families import MoELayout


@dataclass
class RoutedOutput:
    """What one forward pass gives, on the model's device, with gradient where it flows.

    A class of its own and no dict: DeepSpeed hooks every tensor that it finds in a root output, and takes
    any gradient through one for the engine's backward pass, also `torch.autograd.grad` for a log line.
    """

    logits: torch.Tensor
    """float32 [T, V], at the batch's answer positions"""
    routing: torch.Tensor
    """float32 [B, M, E], softmax over all routed experts, averaged over the chosen prompt tokens"""
    load: torch.Tensor
    """float32 [M, E], share of the top-k choices of non-pad tokens that fall on each expert"""


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
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.raw_logits: dict[int, torch.Tensor] = {}
        """By layer, [B * L, E]: what the router's product gave in the last forward; every gradient of the
        router's weight passes through it."""
        self.router_inputs: dict[int, torch.Tensor] = {}
        """By layer, [B * L, hidden], detached: the hidden states that the router saw in the last forward."""
        for layer, router in self._modules_read():
            router.register_forward_hook(self._raw_recorder(layer))

    def _modules_read(self) -> list[tuple[int, nn.Module]]:
        return [
            (site.layer, self.network.get_submodule(site.module))
            for site in self.layout.sites
            if site.layer in self.layers
        ]

    def _raw_recorder(self, layer: int) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.raw_logits[layer] = output[0]
            hidden = inputs[0].detach()
            self.router_inputs[layer] = hidden.reshape(-1, hidden.shape[-1])

        return record

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._outputs[layer] = (output[0], output[2])

        return record

    def attach(self) -> RoutedLM:
        """Start to read routing; call it once, after `deepspeed.initialize` where there is an engine.

        Hooks run in the order of registration. ZeRO-3's own hook replaces a module's outputs by ones whose
        gradient first gathers the weight, so a loss must start from what these later hooks see, while
        `raw_logits`, recorded before it, is where gradients of all terms meet.
        """
        for layer, router in self._modules_read():
            router.register_forward_hook(self._recorder(layer))
        return self

    def routers(self) -> dict[int, nn.Parameter]:
        """The weight [experts, hidden] of each layer's router read by this module, by layer number."""
        return {layer: router.get_parameter("weight") for layer, router in self._modules_read()}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        routing_positions: torch.Tensor,
        routing_weights: torch.Tensor,
        answer_sequence: torch.Tensor,
        answer_position: torch.Tensor,
    ) -> RoutedOutput:
        """Logits at the answer positions and routing at the prompt positions; arguments as in `Batch`."""
        hidden = self.network.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        wanted = hidden[answer_sequence, answer_position].contiguous()
        logits = self.network.get_output_embeddings()(wanted).float()

        sequences, width = input_ids.shape
        starts = torch.arange(sequences, device=hidden.device)[:, None] * width
        flat = (starts + routing_positions).reshape(-1)
        present = attention_mask.reshape(-1).bool()
        routing, load = [], []
        for layer in self.layers:
            router_logits, indices = self._outputs[layer]
            chosen = torch.softmax(router_logits[flat].float(), dim=-1)
            chosen = chosen.reshape(*routing_positions.shape, -1)
            routing.append((chosen * routing_weights[..., None]).sum(dim=1))
            counts = torch.bincount(indices[present].reshape(-1), minlength=chosen.shape[-1]).float()
            load.append(counts / counts.sum())
        self._outputs.clear()
        return RoutedOutput(logits, torch.stack(routing, dim=1), torch.stack(load))
