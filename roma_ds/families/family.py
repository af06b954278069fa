"""What is specific to one family of Mixture-of-Experts models, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from roma_ds.errors import UserError
from roma_ds.families.capability import Limit
from roma_ds.families.dense_layers import DenseLayers, NoDenseLayers
from roma_ds.families.entering import HIDDEN, Carried, Entering, entering_of


@dataclass(frozen=True)
class Family:
    """How the routers of a family are found, named in checkpoints, and scored.

    In all families a router has a weight [E, width] and the scores start as its product with what enters
    (plus a bias in some), the logits. Only that weight is trained.
    """

    name: str
    model_types: tuple[str, ...]
    router_class: str
    """Class name of the router."""
    gate_key: str
    """Name of a router's weight in saved checkpoints, with `{layer}`."""
    experts_attribute: str
    """Name of the config attribute with the number of routed experts; dots lead into a config in it."""
    selection: str
    """How the model picks a token's experts and weighs them, in words."""
    scoring: str = "softmax"
    """How r [E] comes from the logits, in float32: `softmax`, or `sigmoid`: sigmoids divided by their sum."""
    top_k_attribute: str = "num_experts_per_tok"
    place: str = ""
    """Path of the router in its layer, where a layer has other modules of its class; empty where not."""
    weight: str = ""
    """Path in the router of the linear layer that is trained; empty where the weight is the router's own."""
    logits_from: Literal["router", "product"] = "router"
    """What returns the logits: the router, or the linear layer at `weight`."""
    logits_at: int | None = 0
    """Place of the logits among what the router's forward returns; None where it returns them alone."""
    indices_at: int | None = 2
    """Place of the chosen experts [T, k] among what the router's forward returns; None where it lacks them,
    and the largest logits stand for them in the expert load."""
    zero_experts: tuple[str | int, ...] = ()
    """Config attributes, or numbers, of classes that a token may choose and that are no network: they pass
    it on, or skip it. They are rows of the gate and entries of r."""
    joint_rows: tuple[str | int, ...] = ()
    """Config attributes, or numbers, that count rows of the gate behind those of r: shared experts that it
    weighs."""
    width: str | int = "hidden_size"
    """Width of what the gate multiplies: a number, or the name of the config attribute that has it."""
    layers_attribute: str = "num_hidden_layers"
    """Name of the config attribute with the number of decoder layers."""
    mixing: Literal["packed", "rows"] = "packed"
    """How tokens meet in attention: sequences laid one after the other, kept apart by our own attention; or
    padded on the right, row by row, by the library's own forward: for linear attention, state spaces,
    convolutions, indexed and compressed attention."""
    hidden: Carried = HIDDEN
    """The hidden states between two layers."""
    streams: tuple[str, ...] = ()
    """Parameters outside the layers by which residual streams begin or are joined."""
    joined_at: str | None = None
    """Path of the module behind the layers that reads what else they carried; None where none does."""
    carried: tuple[Carried, ...] = ()
    """What else a layer's call is given of earlier layers."""
    returned: tuple[str, ...] = ()
    """Arguments that a layer returns behind the hidden states; without any it returns these alone."""
    float32_only: bool = False
    """Whether the library runs its routers with weights in float32 alone."""
    norm_class: str | None = None
    """Class name of its norms where they are weight * (x / sqrt(mean(x^2) + variance_epsilon)), the bracket
    in float32 and rounded before the weight comes; None for others, which run as the library has them."""
    frozen_router_parts: tuple[str, ...] = ()
    """Further parameters and buffers of a router, under its path; they never change."""
    frozen_block_parts: tuple[str, ...] = ()
    """Parameters and buffers beside a router that are handed to it, under the path of the module around it;
    they never change. One that a config leaves out is not there."""
    dense: DenseLayers = field(default_factory=NoDenseLayers)
    """Which layers have no router."""
    without_routers: tuple[tuple[str, Any], ...] = ()
    """Config attributes, each with a value at which a model of these types has no routers at all."""
    by_detection: tuple[str, ...] = ()
    """Config attributes of which this file knows nothing: a model in which one is not 0, false or null is
    looked at as one of a type without a file."""
    shared: tuple[str, ...] = ()
    """Modules of a sparse layer that every token goes through beside its routed experts. No part of r."""
    gathered_whole: tuple[str, ...] = ()
    """Modules of a layer that call modules in them as the tokens at hand ask for them. ZeRO-3 gathers all
    of their weights at once: call by call, ranks would wait for each other's."""
    attention: str = "self_attn"
    """Name of the attention module in a decoder layer."""
    mixers: tuple[str, ...] = ()
    """Names of what layers have in its place: linear attention, state spaces, convolutions."""
    token_layers: tuple[str, tuple[str, ...]] | None = None
    """Config attribute with a list of one name a layer, and the names of the layers that work on each token
    alone, where a layer is either that or mixes tokens, under the same path. None where every layer does
    both."""
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
    head: str = "lm_head"
    """Path of the product that gives logits."""

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

    def is_router(self, module: Any) -> bool:
        """Whether a module is of the routers' class."""
        return any(base.__name__ == self.router_class for base in type(module).__mro__)

    @property
    def shares_tokens(self) -> bool:
        """Whether what sequences begin with in common may be run once: where attention alone mixes tokens."""
        return self.mixing == "packed"

    def require_type(self, dtype: str) -> None:
        """Raises UserError where such a model does not run with weights of a type, by torch's name of it."""
        if self.float32_only and dtype != "float32":
            raise UserError(
                f"a {self.name} model runs in float32 alone: the library multiplies float32 by its routers' "
                f"weights as they are, and {dtype} by float32 does not go",
                "set model.dtype=float32, or --dtype float32 for `roma-ds plan`",
            )

    def require_parts(self) -> None:
        """Raises UserError where no part of such a model can be run alone."""
        barrier = self.barrier("suffix")
        if barrier is not None:
            raise UserError(
                f"a part of a {self.name} model cannot be run alone: {barrier}",
                "set train.prefix_cache=off and collect.engine=zero3",
            )

    def experts(self, config: Any) -> int:
        """Number of entries of r per MoE layer, from a model config: experts that a router chooses among.

        Raises UserError where layers differ in it.
        """
        return self._number(config, self.experts_attribute) + self.zeros(config)

    def zeros(self, config: Any) -> int:
        """How many of these are no network."""
        return _sum(config, self.zero_experts)

    def gate_rows(self, config: Any) -> int:
        """Rows of a router's weight, from a model config."""
        return self.experts(config) + _sum(config, self.joint_rows)

    def top_k(self, config: Any) -> int:
        """Experts that each token goes to, from a model config; the most of any layer."""
        stated = attribute(config, self.top_k_attribute)
        return int(max(stated) if isinstance(stated, (list, tuple)) else stated)

    def gate_width(self, config: Any) -> int:
        """Columns of a router's weight, from a model config."""
        return self.width if isinstance(self.width, int) else int(getattr(config, self.width))

    def depth(self, config: Any) -> int:
        """Number of decoder layers, from a model config."""
        return int(getattr(config, self.layers_attribute))

    def _number(self, config: Any, name: str) -> int:
        value = attribute(config, name)
        if not isinstance(value, (list, tuple)):
            return int(value)
        sparse = {int(value[layer]) for layer in self.sparse_layers(config)}
        if len(sparse) != 1:
            raise UserError(
                f"{name} of this {self.name} model differs from layer to layer: {sorted(sparse)}",
                "use a model whose sparse layers are alike",
            )
        return sparse.pop()

    def sparse_layers(self, config: Any) -> tuple[int, ...]:
        """Numbers of the layers that have a router, from a model config."""
        if self.recorded_layers is not None:
            return self.recorded_layers
        return tuple(layer for layer in range(self.depth(config)) if self.dense.is_sparse(config, layer))

    def mixes_tokens(self, config: Any, layer: int) -> bool:
        """Whether a layer has attention or what stands in its place."""
        if self.token_layers is None:
            return True
        listed, alone = self.token_layers
        return getattr(config, listed)[layer] not in alone

    def row_modules_in(self, config: Any, layer: int) -> tuple[str, ...]:
        """Those of `row_modules` that a layer may have."""
        if self.token_layers is not None and self.mixes_tokens(config, layer):
            return ()
        # Of a family that was found only sparse layers are known to have such modules.
        return self.row_modules if layer in (self.recorded_layers or (layer,)) else ()

    def stored_layer(self, layer: int) -> str:
        """What the checkpoint keys of a decoder layer start with."""
        return f"{self.gate_key.partition('.{layer}.')[0]}.{layer}."

    def entering(self, config: Any, layer: int, dtype: str) -> Entering:
        """What a call of decoder layer `layer` is given of each token; dtype: of the weights."""
        return entering_of(config, layer, dtype, (self.hidden, *self.carried))

    def leaving(self, config: Any, dtype: str) -> Entering:
        """What the last decoder layer gives of each token, and what else is read behind it; dtype: of the
        weights."""
        blocks = tuple(one for one in self.carried if one.block)
        return entering_of(config, self.depth(config), dtype, (self.hidden, *blocks))

    def blocks(self, config: Any, layer: int) -> dict[str, tuple[int, ...]]:
        """By name of a carried value the layers whose hidden states it is made of, for `layer` to read."""
        return {one.name: one.blocks(config, layer) for one in self.carried if one.block}


def attribute(config: Any, path: str) -> Any:
    """The value at a path of names with dots between them; None where there is none.

    Some configs have values by layer and raise where one is asked for all of them: None too.
    """
    for name in path.split("."):
        try:
            config = getattr(config, name, None)
        except RuntimeError:
            return None
    return config


def _sum(config: Any, names: tuple[str | int, ...]) -> int:
    return sum(name if isinstance(name, int) else int(getattr(config, name) or 0) for name in names)
