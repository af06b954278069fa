"""What is specific to one family of Mixture-of-Experts models, as data."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.capability import Limit
from roma_ds.families.dense_layers import DenseLayers, NoDenseLayers


@dataclass(frozen=True)
class Family:
    """How the routers of a family are found, named in checkpoints, and scored.

    In all families a router is a module with a weight [E, hidden] and the scores start as its product with
    the hidden states, the logits. Only that weight is trained.
    """

    name: str
    model_types: tuple[str, ...]
    router_class: str
    """Class name of the router, whose forward returns (logits [T, E], scores [T, k], indices [T, k])."""
    gate_key: str
    """Name of a router's weight in saved checkpoints, with `{layer}`."""
    experts_attribute: str
    """Name of the config attribute that holds the number of routed experts."""
    selection: str
    """How the model picks a token's experts and weighs them, in words."""
    scoring: str = "softmax"
    """How r [E] comes from the logits, in float32: `softmax`, or `sigmoid`: sigmoids divided by their sum."""
    top_k_attribute: str = "num_experts_per_tok"
    norm_class: str | None = None
    """Class name of its norms where they are weight * (x / sqrt(mean(x^2) + variance_epsilon)), the bracket
    in float32 and rounded before the weight comes; None for others, which run as the library has them."""
    frozen_router_parts: tuple[str, ...] = ()
    """Further parameters and buffers of a router, under its path; they never change."""
    dense: DenseLayers = field(default_factory=NoDenseLayers)
    """Which layers have no router."""
    shared: tuple[str, ...] = ()
    """Modules of a sparse layer that every token goes through beside its routed experts. No part of r."""
    attention: str = "self_attn"
    """Name of the attention module in a decoder layer."""
    row_modules: tuple[str, ...] = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
    """Modules of a decoder layer that work on each token alone, and in the last layer are wanted only for
    the tokens that are read. One that a config leaves out is None in the layer. Without any, the last layer
    does the work of all tokens."""
    recorded_layers: tuple[int, ...] | None = None
    """Numbers of the layers with a router, in a family made for one model, where `dense` knows nothing."""
    limits: tuple[Limit, ...] = ()
    """What is experimental or cannot be done."""
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
    embedding_factor_attribute: str | None = None
    """Name of the config attribute that what enters the first layer is multiplied by, also where it is given
    as `inputs_embeds`."""
    logit_divisor_attribute: str | None = None
    """Name of the config attribute that the head's product is divided by."""

    @property
    def support(self) -> str:
        """`supported`, or `experimental` where there are limits."""
        return "experimental" if self.limits else "supported"

    @property
    def reason(self) -> str:
        """Why it is not simply supported, in one line; empty where it is."""
        return "; ".join(f"{limit.capability} {limit.level}: {limit.reason}" for limit in self.limits)

    def barrier(self, capability: str) -> str | None:
        """Why a capability is unsupported; None where it is not."""
        found = (
            limit.reason
            for limit in self.limits
            if (limit.capability, limit.level) == (capability, "unsupported")
        )
        return next(found, None)

    def require_parts(self) -> None:
        """Raises UserError where no part of such a model can be run alone."""
        barrier = self.barrier("suffix")
        if barrier is not None:
            raise UserError(
                f"a part of a {self.name} model cannot be run alone: {barrier}",
                "set train.prefix_cache=off and collect.engine=zero3",
            )

    def experts(self, config: Any) -> int:
        """Number of routed experts per MoE layer, from a model config."""
        return int(getattr(config, self.experts_attribute))

    def top_k(self, config: Any) -> int:
        """Experts that each token goes to, from a model config."""
        return int(getattr(config, self.top_k_attribute))

    def sparse_layers(self, config: Any) -> tuple[int, ...]:
        """Numbers of the layers that have a router, from a model config."""
        if self.recorded_layers is not None:
            return self.recorded_layers
        return tuple(
            layer for layer in range(int(config.num_hidden_layers)) if self.dense.is_sparse(config, layer)
        )

    def logit_divisor(self, config: Any) -> float:
        """What the head's product is divided by, from a model config."""
        return float(getattr(config, self.logit_divisor_attribute)) if self.logit_divisor_attribute else 1.0

    def truncated(self, config: Any, first: int, last: int, embedding: bool | None = None) -> Any:
        """A copy of a model config with decoder layers `first` to `last` - 1 alone, numbered from 0.

        embedding: whether token ids enter; by default where the first layer is there. Raises UserError where
        the family cannot be cut.
        """
        if (first, last) != (0, config.num_hidden_layers):
            self.require_parts()
        short = deepcopy(config)
        for name in self.per_layer_attributes:
            if getattr(config, name, None) is not None:
                setattr(short, name, getattr(config, name)[first:last])
        self.dense.cut(config, short, first, last)
        inside = first > 0 if embedding is None else not embedding
        if inside and self.embedding_factor_attribute is not None:
            # Hidden states between two layers are not multiplied again.
            setattr(short, self.embedding_factor_attribute, 1.0)
        short.num_hidden_layers = last - first
        return short
