"""The sizes of a model that decide what a run needs, module by module, from a network without weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from roma_ds.families import MoELayout
from roma_ds.families.attention_widths import AttentionWidths, attention_widths, has_pairs
from roma_ds.families.counting import Kind, counted


@dataclass(frozen=True)
class Weight:
    """One parameter tensor."""

    numel: int
    kind: Kind
    trained: bool = False
    """Whether it learns: a router of a chosen layer."""
    stored_bytes: int | None = None
    """Of experts that are held in codes, as a parameter of bytes; None for values of the network's type."""
    itemsize: int = 1
    """Bytes of a value of the network's type."""

    @property
    def numbers(self) -> int:
        """As DeepSpeed counts them."""
        return self.numel if self.stored_bytes is None else self.stored_bytes

    @property
    def held(self) -> int:
        """Values of the network's type that take as much memory."""
        return self.numel if self.stored_bytes is None else -(-self.stored_bytes // self.itemsize)


@dataclass(frozen=True)
class Module:
    """One module of a network, with the weights that are its own."""

    path: str
    layer: int | None
    """Number of the decoder layer that it lies in, in the whole model; None outside."""
    weights: tuple[Weight, ...]
    by_rows: bool = False
    """Whether it works on each token alone, and in the last layer only on the tokens that are read."""

    @property
    def numel(self) -> int:
        """Values of all its weights."""
        return sum(weight.numel for weight in self.weights)


@dataclass(frozen=True)
class ModelSizes:
    """A model, or the part of it from one layer on."""

    modules: tuple[Module, ...]
    """In the order of construction: each before what lies in it."""
    layers: int
    """Decoder layers of the whole model."""
    moe_layers: tuple[int, ...]
    experts: int
    """Routed experts of a layer."""
    top_k: int
    hidden: int
    entering: tuple[tuple[int, int], ...]
    """By layer, of what enters it of each token: values in the type of the weights, and bytes of others."""
    vocabulary: int
    attention: AttentionWidths
    with_pairs: tuple[bool, ...]
    """By layer, whether its queries meet keys one by one: no linear attention, state space or convolution."""
    inner_norms: bool
    """Whether queries and keys go through norms of their own."""
    tied: bool
    """Whether the head's weight is that of the embedding."""
    first: int = 0
    """First decoder layer of this part."""

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """All weights, in the order of the modules."""
        return tuple(weight for module in self.modules for weight in module.weights)

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(weight.numel for weight in self.weights)

    @property
    def held(self) -> int:
        """Values of the network's type that take as much memory as all weights."""
        return sum(weight.held for weight in self.weights)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(weight.numel for weight in self.weights if weight.trained)

    @property
    def expert_width(self) -> int:
        """Width of one routed expert: three products of the hidden width with it."""
        layer = self.moe_layers[-1]
        return self.in_layer(layer, "routed experts") // (3 * self.experts * self.hidden)

    def entering_bytes(self, layer: int, itemsize: int) -> int:
        """Bytes of what enters a layer of each token, with weights of `itemsize` bytes a value."""
        values, others = self.entering[layer]
        return values * itemsize + others

    def in_layer(self, layer: int, *wanted: Kind) -> int:
        """Parameters of some kinds in a layer; of all kinds where none is named."""
        return sum(
            weight.numel
            for module in self.modules
            if module.layer == layer
            for weight in module.weights
            if not wanted or weight.kind in wanted
        )

    def outside(self, kind: Kind) -> int:
        """Parameters of a kind outside the decoder layers."""
        return sum(
            weight.numel
            for module in self.modules
            if module.layer is None
            for weight in module.weights
            if weight.kind == kind
        )

    @property
    def head(self) -> int:
        """Parameters of the product that gives logits, tied or not."""
        return self.outside("embedding") if self.tied else self.outside("head")

    def suffix(self, first: int) -> ModelSizes:
        """The part from layer `first` on with final norm and head, without the embedding; from 0 all."""
        if first == 0:
            return self
        kept: list[Module] = []
        for module in self.modules:
            if module.layer is not None and module.layer < first:
                continue
            own = module.weights
            if module.layer is None and not self.tied:
                own = tuple(weight for weight in own if weight.kind != "embedding")
            kept.append(replace(module, weights=own))
        if self.tied:
            # What was the embedding is the head here, which comes last.
            ends = [module for module in kept if any(w.kind == "embedding" for w in module.weights)]
            kept = [module for module in kept if module not in ends] + ends
        return replace(self, modules=tuple(kept), first=first)

    def training(self, layers: Sequence[int]) -> ModelSizes:
        """The same with the routers of `layers` trained."""
        modules = tuple(
            replace(
                module,
                weights=tuple(
                    replace(weight, trained=weight.kind == "router" and module.layer in layers)
                    for weight in module.weights
                ),
            )
            for module in self.modules
        )
        return replace(self, modules=modules)


def sizes_of(network: Any, layout: MoELayout, kept: Mapping[str, int] | None = None) -> ModelSizes:
    """The sizes of a transformers causal LM whose weights need not be there (the meta device).

    layout: its routers. kept: bytes of the parameters that are held in codes, by name.
    """
    from torch import nn

    family, config = layout.family, network.config
    known = {entry.name: entry for entry in counted(network)}
    in_layer = re.compile(rf"{re.escape(family.layers)}\.(\d+)(?:\.|$)")
    modules = []
    for path, module in network.named_modules():
        # A list of modules is never called.
        if isinstance(module, nn.ModuleList):
            continue
        own = {f"{path}.{name}": one.itemsize for name, one in module.named_parameters(recurse=False)}
        # A tied weight is listed once, under the name that comes first.
        weights = tuple(
            Weight(known[name].numel, known[name].kind, stored_bytes=(kept or {}).get(name), itemsize=item)
            for name, item in own.items()
            if name in known
        )
        found = in_layer.match(path)
        layer = None if found is None else int(found[1])
        rows = () if layer is None else family.row_modules_in(config, layer)
        inside = "" if found is None else f"{path[found.end() :]}."
        modules.append(Module(path, layer, weights, inside.startswith(tuple(f"{name}." for name in rows))))
    return ModelSizes(
        modules=tuple(modules),
        layers=family.depth(config),
        moe_layers=layout.layers,
        experts=layout.networks,
        top_k=layout.top_k,
        hidden=int(config.hidden_size),
        entering=tuple(_entering(layout, config, layer) for layer in range(family.depth(config))),
        vocabulary=int(config.vocab_size),
        attention=attention_widths(config),
        with_pairs=tuple(has_pairs(config, layer) for layer in range(family.depth(config))),
        inner_norms=any(
            weight.kind == "norm" and f".{family.attention}." in module.path
            for module in modules
            for weight in module.weights
        ),
        tied=not any(entry.kind == "head" for entry in known.values()),
    )


def _entering(layout: MoELayout, config: Any, layer: int) -> tuple[int, int]:
    wide, narrow = (
        layout.family.entering(config, layer, name).token_bytes for name in ("float32", "float16")
    )
    values = (wide - narrow) // 2
    return values, narrow - 2 * values
