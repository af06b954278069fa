"""Reads what a decoder layer's call is given of each token, or puts in its place what was kept of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from roma_ds.checkpoint.absent import AbsentLayer
from roma_ds.families.entering import Entering
from roma_ds.network.placement import Placement


class LayerEntry:
    """One layer of a network, by the arguments that come from the layers before it."""

    def __init__(self, layer: nn.Module, entering: Entering) -> None:
        self.layer, self.entering = layer, entering
        own = list(inspect.signature(type(layer).forward).parameters)[1:]
        self._names = layer.names if isinstance(layer, AbsentLayer) else own

    def _name(self, field: str) -> str:
        # Hidden states come first, however a model calls them.
        return self._names[0] if field == "hidden_states" else field

    def read(
        self, take: Callable[[torch.Tensor], None], placement: Callable[[], Placement]
    ) -> RemovableHandle:
        """Before each call of the layer give `take` its table [T, width], detached."""

        def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given, placed = dict(zip(self._names, inputs, strict=False)) | named, placement()
            values = {
                field.name: placed.tokens(given[self._name(field.name)].detach())
                for field in self.entering.fields
            }
            take(self.entering.pack(values, placed.positions))

        return self.layer.register_forward_pre_hook(before, with_kwargs=True)

    def replace(
        self, table: Callable[[], torch.Tensor | None], placement: Callable[[], Placement]
    ) -> RemovableHandle:
        """At each call of the layer put a table [T, width] in place; None leaves the call as it is."""

        def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            found = table()
            if found is None:
                return None
            values = {
                self._name(name): placement().laid(value)
                for name, value in self.entering.unpack(found).items()
            }
            positional = self._names[: len(inputs)]
            first = tuple(values.get(name, value) for name, value in zip(positional, inputs, strict=True))
            rest = {name: value for name, value in values.items() if name not in positional}
            return first, named | rest

        return self.layer.register_forward_pre_hook(before, with_kwargs=True)
