"""What stands in a part of a network for modules that are not there, so that the rest keeps its numbers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from roma_ds.families import Family


class AbsentLayer(nn.Module):
    """A decoder layer without weights: what comes in goes out, in the form that the layer returns."""

    def __init__(self, layer: nn.Module, returned: tuple[str, ...]) -> None:
        """returned: as `Family.returned`."""
        super().__init__()
        self.names = list(inspect.signature(type(layer).forward).parameters)[1:]
        """Of the arguments that the layer's forward takes."""
        self._returned = returned
        # A model's forward asks its layers what kind they are.
        for name, value in {**_stated(type(layer)), **vars(layer)}.items():
            if not name.startswith("_") and name not in vars(self):
                setattr(self, name, value)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The hidden states, alone or with what the layer would hand on."""
        given = dict(zip(self.names, inputs, strict=False)) | named
        hidden = given[self.names[0]]
        return (hidden, *(given.get(name) for name in self._returned)) if self._returned else hidden


def _stated(layer_class: type) -> dict[str, Any]:
    """Names and numbers that a layer's class says of all its instances."""
    return {
        name: value
        for base in reversed(layer_class.__mro__)
        if base is not nn.Module
        for name, value in vars(base).items()
        if isinstance(value, str | int) and not hasattr(nn.Module, name)
    }


class AbsentEmbedding(nn.Module):
    """Zeros in the shape of embedded tokens; what enters the first layer that is there takes their place."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype
        # Some models ask where their embedding lies.
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [B, L] -> [B, L, width]"""
        return torch.zeros(*input_ids.shape, self.width, dtype=self.dtype, device=input_ids.device)


def leave_out(
    network: Any, family: Family, kept: range, embedding: bool, head: bool, dtype: torch.dtype
) -> None:
    """Put modules without weights in the places of all decoder layers but `kept`, and of absent ends."""
    layers = network.get_submodule(family.layers)
    for number, layer in enumerate(layers):
        if number not in kept:
            layers[number] = AbsentLayer(layer, family.returned)
    if not embedding:
        width = network.get_submodule(family.embedding).embedding_dim
        _replace(network, family.embedding, AbsentEmbedding(width, dtype))
    if not head:
        _replace(network, family.head, nn.Identity())


def _replace(network: Any, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
