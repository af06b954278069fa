"""What is specific to one family of Mixture-of-Experts models, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.errors import UserError


@dataclass(frozen=True)
class Family:
    """How the routers of a family are found, named in checkpoints, and scored.

    All families here score by a softmax over all routed experts, followed by a top-k choice.
    """

    name: str
    model_types: tuple[str, ...]
    router_class: str
    """Class name of the router, whose forward returns (logits [T, E], scores [T, k], indices [T, k])."""
    gate_key: str
    """Name of a router's weight in saved checkpoints, with `{layer}`."""
    experts_attribute: str
    """Name of the config attribute that holds the number of routed experts."""
    top_k_attribute: str = "num_experts_per_tok"
    support: str = "supported"
    """`supported` or `experimental`."""

    def experts(self, config: Any) -> int:
        """Number of routed experts per MoE layer, from a model config."""
        return int(getattr(config, self.experts_attribute))

    def top_k(self, config: Any) -> int:
        """Experts that each token goes to, from a model config."""
        return int(getattr(config, self.top_k_attribute))


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
        """The layer numbers that `roma.layers` names: `lastN`, `firstN`, `all`, or a list of numbers.

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
        count = int(layers.removeprefix("last").removeprefix("first"))
        if count > len(available):
            raise UserError(
                f"roma.layers is {layers}, but the model has {len(available)} MoE layers",
                f"use last{len(available)} or all",
            )
        return available[-count:] if layers.startswith("last") else available[:count]
