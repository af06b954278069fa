"""What is specific to one family of Mixture-of-Experts models, as data."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
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
    norm_class: str
    """Class name of its norms: weight * (x / sqrt(mean(x^2) + variance_epsilon)) in float32."""
    gate_key: str
    """Name of a router's weight in saved checkpoints, with `{layer}`."""
    experts_attribute: str
    """Name of the config attribute that holds the number of routed experts."""
    top_k_attribute: str = "num_experts_per_tok"
    attention: str = "self_attn"
    """Name of the attention module in a decoder layer."""
    row_modules: tuple[str, ...] = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
    """Modules of a decoder layer that work on each token alone, and in the last layer are wanted only for
    the tokens that are read."""
    support: str = "supported"
    """`supported` or `experimental`."""
    layers: str = "model.layers"
    """Path of the list of decoder layers in the network, and before a layer's number its checkpoint keys."""
    embedding: str = "model.embed_tokens"
    """Path of the token embedding, in the network and in checkpoint keys."""
    norm: str = "model.norm"
    """Path of what the last layer's hidden states go through before the head."""
    head: str = "lm_head"
    """Path of the product that gives logits."""
    rotary: str = "model.rotary_emb"
    """Path of the position embedding, which no checkpoint holds: it is computed from the config."""
    per_layer_attributes: tuple[str, ...] = ("layer_types",)
    """Names of config attributes that hold one value a layer, where a config has them."""
    dense_attribute: str | None = None
    """Name of the config attribute that lists the numbers of dense layers."""
    sparse_step_attribute: str | None = None
    """Name of the config attribute s by which only layers s - 1, 2 s - 1, ... are sparse."""

    def experts(self, config: Any) -> int:
        """Number of routed experts per MoE layer, from a model config."""
        return int(getattr(config, self.experts_attribute))

    def top_k(self, config: Any) -> int:
        """Experts that each token goes to, from a model config."""
        return int(getattr(config, self.top_k_attribute))

    def truncated(self, config: Any, first: int, last: int) -> Any:
        """A copy of a model config with decoder layers `first` to `last` - 1 alone, numbered from 0."""
        short = deepcopy(config)
        for name in self.per_layer_attributes:
            if getattr(config, name, None) is not None:
                setattr(short, name, getattr(config, name)[first:last])
        if self.dense_attribute is not None:
            dense = set(getattr(config, self.dense_attribute) or ())
            if self.sparse_step_attribute is not None:
                # Which layers the step skips depends on their numbers in the whole model: they are listed.
                step = int(getattr(config, self.sparse_step_attribute))
                dense |= {layer for layer in range(first, last) if (layer + 1) % step}
                setattr(short, self.sparse_step_attribute, 1)
            inside = sorted(layer - first for layer in dense if first <= layer < last)
            setattr(short, self.dense_attribute, inside)
        short.num_hidden_layers = last - first
        return short


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
