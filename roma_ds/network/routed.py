"""A causal LM whose forward returns logits at chosen positions and the live routing weights.

Shapes: B packed sequences, T tokens in all, A predicted tokens, M MoE layers read, E experts, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from roma_ds.families import MoELayout
from roma_ds.network.frozen_modules import use_frozen_modules
from roma_ds.network.head import logits_of
from roma_ds.network.packed_attention import ROWS_ONLY
from roma_ds.network.routing_weights import routing_weights as weights_of
from roma_ds.sequences.packing import Packing


@contextlib.contextmanager
def exact_buffers(module: nn.Module) -> Iterator[None]:
    """Keep float buffers as they are through `deepspeed.initialize`.

    DeepSpeed may cast them to bfloat16 with the weights (`data_types.buffer_dtype`, and older versions below
    ZeRO-3), the rotary frequencies too, and positions would differ from those that the frozen pass saw.
    """
    kept = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    yield
    for name, buffer in module.named_buffers():
        if name in kept:
            buffer.data = kept[name].to(buffer.device)


def _present(layer: nn.Module, names: tuple[str, ...]) -> Iterator[nn.Module]:
    """The modules of a layer at these paths, but those that are None there."""
    for name in names:
        parent, _, own = name.rpartition(".")
        module = getattr(layer.get_submodule(parent), own)
        if module is not None:
            yield module


@dataclass
class RoutedOutput:
    """What one forward pass gives, on the model's device, with gradient where it flows.

    A class of its own and no dict: DeepSpeed hooks every tensor that it finds in a root output, and takes
    any gradient through one for the engine's backward pass, also `torch.autograd.grad` for a log line.
    """

    logits: torch.Tensor
    """float32 [A, V], at the batch's answer positions"""
    routing: torch.Tensor
    """float32 [B, M, E], r over all routed experts, averaged over the chosen prompt tokens"""
    load: torch.Tensor
    """float32 [M, E], share of the top-k choices that fall on each expert; in the network's last layer those
    of the tokens that are read"""
    entering: torch.Tensor | None = None
    """[T, hidden], detached, where `RoutedLM.capture` asked for it"""


class RoutedLM(nn.Module):
    """Wraps a causal LM so that one root forward serves collection, training and evaluation.

    The network may be whole, or a suffix that is fed with the hidden states entering its first layer. In its
    last layer only the tokens that are read go through attention queries and experts.

    Being the engine's root module matters under ZeRO-3: calling parts of the network beside the
    engine's forward invalidates DeepSpeed's prefetch trace.
    """

    def __init__(self, network: Any, layout: MoELayout, layers: tuple[int, ...], first: int = 0) -> None:
        """layout, layers: in the numbers of the whole model, of which `network` is the part from `first`."""
        super().__init__()
        use_frozen_modules(network)
        self.network = network
        self.layout = layout
        self.layers = layers
        self.first = first
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.raw_logits: dict[int, torch.Tensor] = {}
        """By layer, [tokens, E]: what the router's product gave in the last forward; every gradient of the
        router's weight passes through it."""
        self.router_inputs: dict[int, torch.Tensor] = {}
        """By layer, [tokens, hidden], detached: the hidden states that the router saw in the last forward."""
        self._rows: torch.Tensor
        self._captured: torch.Tensor | None = None
        self._capturing: RemovableHandle | None = None
        for layer, router in self._modules_read():
            router.register_forward_hook(self._raw_recorder(layer))
        last = network.base_model.layers[-1]
        self.last_layer = first + len(network.base_model.layers) - 1
        self._rows_only = bool(layout.family.row_modules)
        if self._rows_only:
            setattr(last.get_submodule(layout.family.attention), ROWS_ONLY, True)
        self._divisor = layout.family.logit_divisor(network.config)
        for module in _present(last, layout.family.row_modules):
            module.register_forward_pre_hook(self._take_rows)
            module.register_forward_hook(self._put_rows)

    def _modules_read(self) -> list[tuple[int, nn.Module]]:
        return [
            (site.layer, self.network.get_submodule(site.module))
            for site in self.layout.sites
            if site.layer in self.layers
        ]

    def _take_rows(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._tokens = inputs[0].shape[1]
        return (inputs[0].index_select(1, self._rows), *inputs[1:])

    def _put_rows(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        # Some blocks give out more beside the hidden states.
        rows, *more = output if isinstance(output, tuple) else (output,)
        room = rows.new_zeros(1, self._tokens, rows.shape[-1]).index_copy(1, self._rows, rows)
        return (room, *more) if isinstance(output, tuple) else room

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

    def capture(self, layer: int) -> None:
        """From now on give out the hidden states entering layer `layer`, as `RoutedOutput.entering`."""

        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._captured = inputs[0][0].detach()

        if self._capturing is not None:
            self._capturing.remove()
        entered = self.network.base_model.layers[layer - self.first]
        self._capturing = entered.register_forward_pre_hook(record)

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
        position_ids: torch.Tensor,
        packing: Packing,
        routing_positions: torch.Tensor,
        routing_weights: torch.Tensor,
        answer_position: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        hidden_states: torch.Tensor | None = None,
    ) -> RoutedOutput:
        """Logits at the answer positions and routing at the prompt positions; arguments as in `Batch`."""
        self._rows = packing.rows
        source = {"input_ids": input_ids} if hidden_states is None else {"inputs_embeds": hidden_states}
        source = {name: tokens[None] for name, tokens in source.items() if tokens is not None}
        hidden = self.network.base_model(
            **source, position_ids=position_ids[None], use_cache=False, packing=packing
        ).last_hidden_state[0]
        # A contiguous [A, hidden]: a strided slice would copy the head's weight for every sample on a CPU.
        logits = logits_of(self.network, hidden[answer_position], self._divisor)
        routing, load = [], []
        for layer in self.layers:
            router_logits, indices = self._outputs[layer]
            by_row = self._rows_only and layer == self.last_layer
            read = packing.row_of[routing_positions] if by_row else routing_positions
            chosen = weights_of(router_logits[read], self.layout.family.scoring)
            routing.append((chosen * routing_weights[..., None]).sum(dim=1))
            counts = torch.bincount(indices.reshape(-1), minlength=chosen.shape[-1]).float()
            load.append(counts / counts.sum())
        self._outputs.clear()
        entering, self._captured = self._captured, None
        return RoutedOutput(logits, torch.stack(routing, dim=1), torch.stack(load), entering)
