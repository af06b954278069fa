"""Reads what a decoder layer's call is given of each token, or puts in its place what was kept of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
        """layer: or what reads them behind the last one."""
        self.layer, self.entering = layer, entering
        own = list(inspect.signature(type(layer).forward).parameters)[1:]
        self._names = layer.names if isinstance(layer, AbsentLayer) else own

    def _name(self, field: str) -> str:
        # Hidden states come first beside what is carried, however a model calls them.
        carried = {one.name for one in self.entering.fields[1:]}
        own = next(name for name in self._names if name not in carried)
        return own if field == self.entering.fields[0].name else field

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


class BlockEntry:
    """One layer of a model that keeps, for all later layers, what entered some of the layers before it.

    What stands in these layers' places gives it out, so that the model's own forward keeps it again.
    """

    def __init__(
        self, before: Sequence[nn.Module], blocks: Mapping[str, Sequence[int]], entering: Entering
    ) -> None:
        """before: the embedding and all layers before the entered one; blocks: as `Family.blocks`."""
        self.before, self.entering = before, entering
        hidden = entering.fields[0].name
        places = {
            layer: (name, number) for name, found in blocks.items() for number, layer in enumerate(found)
        }
        self._places: dict[int, tuple[str, int | None]] = {**places, len(before) - 1: (hidden, None)}

    def replace(self, table: Callable[[], torch.Tensor | None], placement: Callable[[], Placement]) -> None:
        """At each pass let the modules give out a table [T, width]; None leaves all as it is."""
        for layer, (name, number) in self._places.items():
            self.before[layer].register_forward_hook(self._giver(name, number, table, placement))

    def _giver(self, name: str, number: int | None, table: Any, placement: Any) -> Any:
        def give(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            found = table()
            if found is None:
                return None
            values = self.entering.unpack(found)[name]
            return placement().laid(values if number is None else values[:, number])

        return give
