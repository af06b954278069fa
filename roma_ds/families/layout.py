"""The routers of one model: where they are, and which of them `roma.layers` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roma_ds.errors import UserError
from roma_ds.families.family import Family


@dataclass(frozen=True)
class RouterSite:
    """One router in a model."""

    layer: int
    module: str
    """Path of the router."""
    experts: int
    """Entries of r."""
    hidden: int
    """Width of what the gate multiplies, the hidden states in most models."""
    product: str
    """Path of the module that owns the trained weight: the router, or a linear layer in it."""
    source: str
    """Path of the module that returns the logits."""
    rows: int
    """Of the weight [rows, hidden]: more than entries of r where shared experts are weighed by it too."""


@dataclass(frozen=True)
class MoELayout:
    """The routers detected in a model, in layer order, and the family that describes them."""

    family: Family
    sites: tuple[RouterSite, ...]
    top_k: int
    zero_experts: int = 0
    """Entries of r that are no network: choosing them a token is passed on or skipped."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the MoE layers."""
        return tuple(site.layer for site in self.sites)

    @property
    def experts(self) -> int:
        """Entries of r per MoE layer: routed experts."""
        return self.sites[0].experts

    @property
    def networks(self) -> int:
        """Routed experts per MoE layer that are networks."""
        return self.experts - self.zero_experts

    def gate_key(self, layer: int) -> str:
        """Checkpoint key of the router weight of `layer`."""
        return self.family.gate_key.format(layer=layer)

    def choose(self, layers: str | Sequence[int]) -> tuple[int, ...]:
        """The layer numbers that `roma.layers` names: `lastN`, `firstN`, `middleN`, `all`, or a list.

        Counts MoE layers only. Raises UserError when the model has fewer, or a number is no MoE layer.
        """
        available = self.layers
        if not isinstance(layers, str):
            missing = [layer for layer in layers if layer not in available]
            if missing:
                raise UserError(
                    f"roma.layers names {missing}, which have no router; MoE layers are {list(available)}",
                    "choose from those, or use lastN",
                )
            return tuple(sorted(set(layers)))
        if layers == "all":
            return available
        place = layers.rstrip("0123456789")
        count = int(layers[len(place) :])
        if count > len(available):
            raise UserError(
                f"roma.layers is {layers}, but the model has {len(available)} MoE layers",
                f"use last{len(available)} or all",
            )
        spare = len(available) - count
        start = {"first": 0, "middle": spare // 2, "last": spare}[place]
        return available[start : start + count]
