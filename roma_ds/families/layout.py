"""The routers of one model: where they are, and which of them `roma.layers` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roma_ds.errors import UserError
from roma_ds.families.family import Family


@dataclass(frozen=True)
class RouterSite:
    """One router in a model: its layer number, module path and weight shape [experts, hidden]."""

    layer: int
    module: str
    experts: int
    hidden: int


@dataclass(frozen=True)
class MoELayout:
    """The routers detected in a model, in layer order, and the family that describes them."""

    family: Family
    sites: tuple[RouterSite, ...]
    top_k: int

    def shifted(self, first: int) -> MoELayout:
        """The same routers under the numbers of the whole model, of which this is the part from `first`."""
        sites = tuple(replace(site, layer=site.layer + first) for site in self.sites)
        return replace(self, sites=sites)

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the MoE layers."""
        return tuple(site.layer for site in self.sites)

    @property
    def experts(self) -> int:
        """Routed experts per MoE layer."""
        return self.sites[0].experts

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
