"""A causal LM whose forward returns logits at chosen positions and the live routing weights.

Shapes: B packed sequences, T tokens in all, A predicted tokens, P that predict them, M MoE layers read,
E experts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from roma_ds.checkpoint.absent import AbsentLayer
from roma_ds.families import MoELayout
from roma_ds.network.frozen_modules import use_frozen_modules
from roma_ds.network.layer_entry import BlockEntry, LayerEntry
from roma_ds.network.placement import Placement
from roma_ds.network.routing_weights import logits_in
from roma_ds.network.routing_weights import routing_weights as weights_of
from roma_ds.network.token_rows import narrow
from roma_ds.sequences.packing import Packing


@dataclass
class RoutedOutput:
    """What one forward pass gives, on the model's device, with gradient where it flows.

    A class of its own and no dict: DeepSpeed hooks every tensor that it finds in a root output, and takes
    any gradient through one for the engine's backward pass, also `torch.autograd.grad` for a log line.
    """

    rows: torch.Tensor
    """float32 [P, V], logits at the tokens that predict answers"""
    routing: torch.Tensor
    """float32 [B, M, E], r over all routed experts, averaged over the chosen prompt tokens"""
    load: torch.Tensor
    """float32 [M, E], share of the top-k choices that fall on each expert; in the network's last layer those
    of the tokens that are read"""
    entering: torch.Tensor | None = None
    """[T, width], as `Entering.pack` has it, where `RoutedLM.capture` asked for it"""
    row: torch.Tensor | None = None
    """int64 [A], the one of `rows` that predicts each answer token; None where they are in order"""

    @property
    def logits(self) -> torch.Tensor:
        """float32 [A, V], at the batch's answer positions."""
        return self.rows if self.row is None else self.rows[self.row]


class RoutedLM(nn.Module):
    """Wraps a causal LM so that one root forward serves collection, training and evaluation.

    The network may be whole, or the part from one layer on, fed with what was kept of the layers before. In
    its last layer only the tokens that are read go through attention queries and experts.

    Being the engine's root module matters under ZeRO-3: calling parts of the network beside the
    engine's forward invalidates DeepSpeed's prefetch trace.
    """

    def __init__(self, network: Any, layout: MoELayout, layers: tuple[int, ...], first: int = 0) -> None:
        """layers: those whose routing is read. first: the first layer that is there."""
        super().__init__()
        use_frozen_modules(network)
        self.network = network
        self.layout = layout
        self.layers = layers
        family, config = layout.family, network.config
        self._scoring = family.scoring
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.raw_logits: dict[int, torch.Tensor] = {}
        """By layer, [.., rows]: what the router's product gave in the last forward; every gradient of
        the router's weight passes through it."""
        self.router_inputs: dict[int, torch.Tensor] = {}
        """By layer, [tokens, width], detached: what the router multiplied in the last forward."""
        self._placement: Placement
        self._answers: torch.Tensor
        self._predicting: torch.Tensor
        self._row: torch.Tensor | None = None
        self._table: torch.Tensor | None = None
        self._captured: torch.Tensor | None = None
        self._capturing: RemovableHandle | None = None
        self._by_rows = family.mixing == "rows"
        self._dtype = str(network.dtype).removeprefix("torch.")
        self.first, self.last_layer = first, family.depth(config) - 1
        rows = {site.layer: site.rows for site in layout.sites}
        for layer, source in self._modules_read("source"):
            source.register_forward_hook(self._raw_recorder(layer, rows[layer]))
        self._entry().replace(lambda: self._table, lambda: self._placement)
        self._inside = narrow(network, layout, first, self._needed_rows, self._all_rows)
        """Layers whose router sees real tokens alone, in the last layer those that are read."""
        self._inner().register_forward_hook(self._keep_answers)

    def _layer(self, number: int) -> nn.Module:
        found: nn.Module = self.network.get_submodule(f"{self.layout.family.layers}.{number}")
        return found

    def _entry(self) -> LayerEntry | BlockEntry:
        """Where what was kept of earlier layers is put in place."""
        family, config, entered = self.layout.family, self.network.config, self.first
        entering = family.entering(config, entered, self._dtype)
        if isinstance(self._layer(self.first), AbsentLayer):
            # Behind the last layer only what is read there counts.
            entered, entering = self.last_layer + 1, family.leaving(config, self._dtype)
        if family.joined_at is None:
            return LayerEntry(self._layer(self.first), entering)
        before = [self._layer(number) for number in range(entered)]
        embedding = self.network.get_submodule(family.embedding)
        return BlockEntry([embedding, *before], family.blocks(config, entered), entering)

    def _inner(self) -> nn.Module:
        """The network without its head."""
        found: nn.Module = self.network.get_submodule(self.layout.family.layers.rpartition(".")[0])
        return found

    def _modules_read(self, kind: Literal["module", "product", "source"]) -> list[tuple[int, nn.Module]]:
        return [
            (site.layer, self.network.get_submodule(getattr(site, kind)))
            for site in self.layout.sites
            if site.layer in self.layers
        ]

    def _needed_rows(self) -> torch.Tensor:
        return self._placement.places(self._placement.packing.rows)

    def _all_rows(self) -> torch.Tensor | None:
        placement = self._placement
        every = placement.shape[0] * placement.shape[1] == len(placement.positions)
        return None if every else placement.places()

    def rows_of(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """Rows of what the router of a layer sees at `tokens`, by their numbers in the last batch."""
        if layer in self._inside:
            return self._placement.packing.row_of[tokens] if layer == self.last_layer else tokens
        return self._placement.places(tokens)

    def _keep_answers(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        hidden = output.last_hidden_state
        # A contiguous [A, hidden]: a strided slice would copy the head's weight for every sample on a CPU.
        flat = hidden.reshape(-1, hidden.shape[-1])
        output.last_hidden_state = flat[self._placement.places(self._predicting)][None]
        return output

    def _raw_recorder(self, layer: int, rows: int) -> Any:
        family = self.layout.family

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            raw = logits_in(family, output)
            if raw.shape[-1] != rows:
                # Of a product with more rows the router gives out a part that is a view of it.
                raw = raw._base
            self.raw_logits[layer] = raw
            hidden = inputs[0].detach()
            self.router_inputs[layer] = hidden.reshape(-1, hidden.shape[-1])

        return record

    def _recorder(self, layer: int) -> Any:
        family = self.layout.family
        entries = family.experts(self.network.config)

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            raw = logits_in(family, output)
            self._outputs[layer] = (raw.reshape(-1, raw.shape[-1])[:, :entries], None)

        return record

    def _chooser(self, layer: int) -> Any:
        place = self.layout.family.indices_at

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            chosen = output[place]
            self._outputs[layer] = (self._outputs[layer][0], chosen.reshape(-1, chosen.shape[-1]))

        return record

    def capture(self, layer: int) -> None:
        """From now on give out what enters layer `layer`, as `RoutedOutput.entering`."""
        entering = self.layout.family.entering(self.network.config, layer, self._dtype)

        def take(table: torch.Tensor) -> None:
            self._captured = table

        if self._capturing is not None:
            self._capturing.remove()
        entry = LayerEntry(self._layer(layer), entering)
        self._capturing = entry.read(take, lambda: self._placement)

    def attach(self) -> RoutedLM:
        """Start to read routing; call it once, after `deepspeed.initialize` where there is an engine.

        Hooks run in the order of registration. ZeRO-3's own hook replaces a module's outputs by ones whose
        gradient first gathers the weight, so a loss must start from what these later hooks see, while
        `raw_logits`, recorded before it, is where gradients of all terms meet.
        """
        for layer, source in self._modules_read("source"):
            source.register_forward_hook(self._recorder(layer))
        if self.layout.family.indices_at is not None:
            for layer, router in self._modules_read("module"):
                router.register_forward_hook(self._chooser(layer))
        return self

    def routers(self) -> dict[int, nn.Parameter]:
        """The weight [rows, width] of each layer's router read by this module, by layer number."""
        return {layer: product.get_parameter("weight") for layer, product in self._modules_read("product")}

    def forward(
        self,
        position_ids: torch.Tensor,
        packing: Packing,
        routing_positions: torch.Tensor,
        routing_weights: torch.Tensor,
        answer_position: torch.Tensor,
        input_ids: torch.Tensor,
        entering: torch.Tensor | None = None,
    ) -> RoutedOutput:
        """Logits at the answer positions and routing at the prompt positions; arguments as in `Batch`."""
        self._begin(position_ids, packing, answer_position, entering)
        output = self.network(**self._placement.inputs(input_ids), use_cache=False)
        routing, load = self._routing(routing_positions, routing_weights)
        captured, self._captured, self._table = self._captured, None, None
        return RoutedOutput(output.logits[0].float(), routing, load, captured, self._row)

    def through(
        self,
        behind: int,
        position_ids: torch.Tensor,
        packing: Packing,
        routing_positions: torch.Tensor,
        routing_weights: torch.Tensor,
        answer_position: torch.Tensor,
        input_ids: torch.Tensor,
        entering: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, but only up to layer `behind`: what enters it, [T, width], and routing as there.

        Behind the last layer: what leaves it, [A, width], at the answer positions alone.
        """
        self._begin(position_ids, packing, answer_position, entering)
        stop = self._stop_at(behind)
        try:
            self._inner()(**self._placement.inputs(input_ids), use_cache=False)
        except _Stop as stopped:
            table = stopped.table
        finally:
            stop.remove()
        routing, _ = self._routing(routing_positions, routing_weights)
        self._table = None
        return table, routing

    def _begin(
        self,
        position_ids: torch.Tensor,
        packing: Packing,
        answer_position: torch.Tensor,
        entering: torch.Tensor | None,
    ) -> None:
        self._placement = Placement(packing, position_ids, self._by_rows)
        self._answers, self._table = answer_position, entering
        self._predicting, self._row = answer_position, None
        if packing.sharing is not None:
            distinct, row = torch.unique(answer_position, return_inverse=True)
            if len(distinct) < len(row):
                self._predicting, self._row = distinct, row

    def _stop_at(self, layer: int) -> RemovableHandle:
        config, family = self.network.config, self.layout.family

        def stop(table: torch.Tensor) -> None:
            raise _Stop(table)

        if layer <= self.last_layer:
            entry = LayerEntry(self._layer(layer), family.entering(config, layer, self._dtype))
            return entry.read(stop, lambda: self._placement)
        leaving = family.leaving(config, self._dtype)
        if family.joined_at is not None:
            entry = LayerEntry(self.network.get_submodule(family.joined_at), leaving)
            return entry.read(lambda table: stop(table[self._answers]), lambda: self._placement)

        def at_end(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            hidden = output[0] if family.returned else output
            at_answers = self._placement.tokens(hidden)[self._answers]
            raise _Stop(leaving.pack({leaving.fields[0].name: at_answers}, self._answers))

        return self._layer(self.last_layer).register_forward_hook(at_end)

    def _routing(self, positions: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """r [B, M, E] of the last pass, averaged over `positions` [B, N], and the experts' load [M, E]."""
        routing, load = [], []
        for layer in self.layers:
            logits, indices = self._outputs[layer]
            chosen = weights_of(logits[self.rows_of(layer, positions)], self._scoring)
            routing.append((chosen * weights[..., None]).sum(dim=1))
            if indices is None:
                indices = logits.topk(self.layout.top_k, dim=-1).indices
            if layer not in self._inside:
                indices = self._placement.tokens(indices)
            counts = torch.bincount(indices.reshape(-1), minlength=chosen.shape[-1]).float()
            load.append(counts / counts.sum())
        self._outputs.clear()
        if not routing:
            experts = self.layout.family.experts(self.network.config)
            nothing = weights.new_zeros(len(weights), 0, experts)
            return nothing, nothing[0]
        return torch.stack(routing, dim=1), torch.stack(load)


class _Stop(Exception):
    """Ends a forward pass at the layer behind the last one that is wanted."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table
