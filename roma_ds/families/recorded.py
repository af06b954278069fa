"""Mixture-of-Experts models that no family file describes, from what transformers records of their routers.

Nothing is taken on trust: the routers are looked up in the model, and one of them is run on random numbers to
see what it gives.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.capability import Limit
from roma_ds.families.family import Family
from roma_ds.families.unusable_config import making_faults

RECORD = "router_logits"
"""What transformers calls the record."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
FACTORS = (
    "embedding_multiplier",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
    "final_logit_softcapping",
)
"""Config attributes by which a model may scale what enters the layers or what the head gives."""
ATTENTIONS = ("full_attention", "sliding_attention")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_PROBES = 16


def recorded_family(config: Any) -> Family | None:
    """A family made for this model alone; None where transformers records no routers of its class.

    Raises UserError where there are routers and they, or the model around them, cannot be used.
    """
    network_class = _class_of(config)
    record = (getattr(network_class, "_can_record_outputs", None) or {}).get(RECORD)
    if record is None:
        return None
    return _found(_Key(config, network_class, record))


def unrecorded(config: Any) -> str | None:
    """The number of experts that a config or its text_config states, as `name=number`; None without one.

    For models of which transformers records no routers.
    """
    parts = (config, getattr(config, "text_config", None))
    stated = ((name, getattr(part, name, None)) for part in parts if part is not None for name in EXPERTS)
    return next((f"{name}={n}" for name, n in stated if isinstance(n, int) and n > 1), None)


def _class_of(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


class _Key:
    """A config that is equal to others with the same values."""

    def __init__(self, config: Any, network_class: Any, record: Any) -> None:
        self.config, self.network_class, self.record = config, network_class, record
        self._text = config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@lru_cache(maxsize=4)
def _found(key: _Key) -> Family:
    import torch

    config = key.config
    with making_faults(config), torch.device("meta"):
        network = key.network_class._from_config(config, dtype=torch.float32)
    _check_surroundings(key, network)
    routers = _routers(key, network)
    place = next(iter(routers.values()))[0]
    router = next(iter(routers.values()))[1]
    experts, top_k = _sizes(config, router)
    scoring = _probed(config, router)
    return Family(
        name=config.model_type,
        model_types=(config.model_type,),
        router_class=type(router).__name__,
        gate_key=_gate_key(network, place),
        experts_attribute=experts,
        top_k_attribute=top_k,
        selection=f"{scoring}, seen in a trial of the router",
        scoring=scoring,
        row_modules=(),
        per_layer_attributes=(),
        recorded_layers=tuple(routers),
        limits=(
            Limit(
                "route",
                "experimental",
                f"no family describes it; found were {len(routers)} routers of class "
                f"{type(router).__name__} with {getattr(config, experts)} experts, top-"
                f"{getattr(config, top_k)}, that score by {scoring}",
            ),
            Limit("suffix", "unsupported", "how to cut its config is not known"),
        ),
    )


def _refused(config: Any, reason: str) -> UserError:
    return UserError(
        f"model type '{config.model_type}' has routers, but {reason}",
        "use a model of a family that `roma-ds ls families` lists",
    )


def _check_surroundings(key: _Key, network: Any) -> None:
    """Raises UserError where the model around the routers is not what the frozen pass can run."""
    config = key.config
    if not getattr(key.network_class, "_supports_attention_backend", False):
        raise _refused(config, "its attention cannot be exchanged for that of packed sequences")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTIONS))
    if other:
        raise _refused(config, f"it has layers of type {other[0]}, which would mix packed sequences")
    for name in FACTORS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise _refused(config, f"what its {name} does is not known")
    for path in ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"):
        try:
            network.get_submodule(path)
        except AttributeError:
            raise _refused(config, f"it has no {path}") from None
    attention = (getattr(key.network_class, "_can_record_outputs", None) or {}).get("attentions")
    for number, layer in enumerate(network.get_submodule("model.layers")):
        if not isinstance(attention, type) or not any(isinstance(m, attention) for m in layer.modules()):
            raise _refused(config, f"layer {number} has no attention")


def _routers(key: _Key, network: Any) -> dict[int, tuple[str, Any]]:
    """By layer: the router's path in the network, and the router."""
    recorders = key.record if isinstance(key.record, list) else [key.record]
    wanted = [getattr(recorder, "target_class", recorder) for recorder in recorders]
    if len(wanted) != 1 or getattr(recorders[0], "index", 0) != 0:
        raise _refused(key.config, "they give out their logits in a way that is not known")
    found: dict[int, tuple[str, Any]] = {}
    for name, module in network.named_modules():
        match = _LAYER.match(name)
        if match is None or type(module) is not wanted[0]:
            continue
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or weight.shape[1] != key.config.hidden_size:
            raise _refused(key.config, f"{name} has no weight [experts, hidden]")
        if int(match.group(1)) in found:
            raise _refused(key.config, f"layer {match.group(1)} has several")
        found[int(match.group(1))] = (name, module)
    if len({_LAYER.sub(r"\2", name) for name, _ in found.values()}) != 1:
        kind = getattr(wanted[0], "__name__", str(wanted[0]))
        raise _refused(key.config, f"no or several places of a {kind} were found")
    return found


def _sizes(config: Any, router: Any) -> tuple[str, str]:
    """Names of the config attributes with the number of experts and how many a token goes to."""
    experts = [name for name in EXPERTS if getattr(config, name, None) == router.weight.shape[0]]
    top_k = [name for name in TOP_K if isinstance(getattr(config, name, None), int)]
    if not experts or not top_k:
        raise _refused(config, "its config does not say how many experts there are and are chosen")
    return experts[0], top_k[0]


def _probed(config: Any, meta_router: Any) -> str:
    """`softmax` or `sigmoid`: what the router makes of random logits."""
    import torch
    from torch import nn

    source = torch.Generator().manual_seed(0)
    router = meta_router.to_empty(device="cpu").float().eval()
    for values in (*router.parameters(), *router.buffers()):
        nn.init.zeros_(values)
    kind = type(router).__name__
    hidden = torch.randn(_PROBES, router.weight.shape[1], generator=source)
    with torch.no_grad():
        router.weight.normal_(std=router.weight.shape[1] ** -0.5, generator=source)
        try:
            logits, scores, indices = router(hidden)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _refused(config, f"a {kind} does not give logits, scores and indices: {error}") from error
    wanted = hidden @ router.weight.T
    shaped = logits.shape == wanted.shape and indices.dim() == 2 and scores.shape == indices.shape
    if shaped and torch.allclose(logits.float(), wanted, atol=1e-4) and not indices.is_floating_point():
        chosen = scores.float() / scores.float().sum(dim=-1, keepdim=True)
        for name, values in (("softmax", torch.softmax(wanted, -1)), ("sigmoid", wanted.sigmoid())):
            own = values.gather(1, indices)
            shares = own / own.sum(dim=-1, keepdim=True)
            if torch.allclose(chosen, shares, atol=1e-4):
                return name
    raise _refused(config, f"a {kind} scores neither by a softmax nor by sigmoids")


def _gate_key(network: Any, place: str) -> str:
    """The checkpoint's name of a router's weight, with `{layer}`."""
    from transformers.core_model_loading import revert_weight_conversion

    name = f"{place}.weight"
    (saved,) = revert_weight_conversion(network, {name: network.get_parameter(name)})
    return re.sub(r"(\.layers\.)\d+\.", r"\1{layer}.", saved, count=1)
