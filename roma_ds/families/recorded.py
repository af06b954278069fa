"""Mixture-of-Experts models that no family file describes, from what transformers records of their routers.

Nothing is taken on trust: the routers are looked up in the model, and one of them is run on random numbers to
see what it gives.
"""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.batching import mixing_reason
from roma_ds.families.capability import Limit
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.families.entering import HIDDEN, Carried
from roma_ds.families.family import Family, attribute
from roma_ds.families.layer_arguments import HANDED_ON, KEPT, RECOMPUTED, STREAMS, SWITCHED
from roma_ds.families.router_trial import Trial, Unclear, tried
from roma_ds.families.unusable_config import making_faults

RECORD = "router_logits"
"""What transformers calls the record."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "top_k")
DEPTHS = ("num_hidden_layers", "num_layers")
ATTENTIONS = ("full_attention", "sliding_attention")
_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.+)$")


def recorded_family(config: Any) -> Family | None:
    """A family made for this model alone; None where transformers records no routers of its class.

    Raises UserError where there are routers and they, or the model around them, cannot be used.
    """
    network_class = causal_lm_class(type(config))
    if network_class is None:
        return None
    return _found(_Key(config, network_class))


def unrecorded(config: Any) -> str | None:
    """The number of experts that a config or its text_config states, as `name=number`; None without one.

    For models of which transformers records no routers.
    """
    parts = (config, getattr(config, "text_config", None))
    stated = ((name, getattr(part, name, None)) for part in parts if part is not None for name in EXPERTS)
    return next((f"{name}={n}" for name, n in stated if isinstance(n, int) and n > 1), None)


class _Key:
    """A config that is equal to others with the same values."""

    def __init__(self, config: Any, network_class: Any) -> None:
        self.config, self.network_class = config, network_class
        self._text = config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@lru_cache(maxsize=4)
def _found(key: _Key) -> Family | None:
    import torch

    config = key.config
    mixing = mixing_reason(config)
    if mixing is not None:
        raise _refused(config, f"{mixing}, so that no token has a routing of its own")
    if unrecorded(config) is None and not getattr(key.network_class, "_can_record_outputs", None):
        return None
    with making_faults(config), torch.device("meta"):
        network = key.network_class._from_config(config, dtype=torch.float32)
    record = _record(network)
    if record is None:
        return None
    places = _routers(config, network, record)
    layers, number, inner = _NUMBERED.match(next(iter(places.values()))[0]).groups()  # type: ignore[union-attr]
    router = next(iter(places.values()))[1]
    experts_attribute, top_k = _sizes(config)
    stated = getattr(config, experts_attribute)
    experts = int(stated[int(number)] if isinstance(stated, list) else stated)
    try:
        trial = tried(router, int(config.hidden_size), experts)
    except Unclear as error:
        raise _refused(config, f"they {error}") from error
    layer = network.get_submodule(layers)[int(number)]
    given = inspect.signature(layer.forward).parameters
    handed_on = tuple(one for one in HANDED_ON if one.name in given)
    kept = tuple(one for one in KEPT if one.name in given)
    carried = (*handed_on, *kept)
    hidden = next((entering for name, entering in STREAMS if getattr(config, name, None)), HIDDEN)
    mixing = "packed" if hidden is HIDDEN and _can_be_packed(network, layers) else "rows"
    return Family(
        name=config.model_type,
        model_types=(config.model_type,),
        router_class=type(router).__name__,
        gate_key=_gate_key(network, f"{layers}.{number}.{inner}", trial, number),
        experts_attribute=experts_attribute,
        top_k_attribute=top_k,
        selection=f"{trial.scoring}, seen in a trial of the router",
        scoring=trial.scoring,
        weight=trial.weight,
        logits_from=trial.logits_from,
        logits_at=trial.logits_at,
        indices_at=trial.indices_at,
        zero_experts=(trial.entries - experts,) if trial.entries > experts else (),
        joint_rows=(trial.rows - trial.entries,) if trial.rows > trial.entries else (),
        width=trial.width,
        float32_only=not trial.rounds,
        layers_attribute=_depth_attribute(config, network.get_submodule(layers)),
        mixing=mixing,  # type: ignore[arg-type]
        hidden=hidden,
        streams=_streams(network, layers),
        carried=carried,
        returned=tuple(one.name for one in handed_on),
        joined_at=_joined_at(network, layers, kept),
        row_modules=_block(layer, inner),
        gathered_whole=_experts(layer, inner),
        recorded_layers=tuple(places),
        layers=layers,
        embedding=_path_of(network, network.get_input_embeddings()),
        head=_path_of(network, network.get_output_embeddings()),
        limits=tuple(_limits(config, places, trial, experts, top_k, layer, carried)),
    )


def _limits(
    config: Any,
    places: dict[int, tuple[str, Any]],
    trial: Trial,
    experts: int,
    top_k: str,
    layer: Any,
    carried: tuple[Carried, ...],
) -> list[Limit]:
    """What is experimental or cannot be done with a family that was found."""
    kind = type(next(iter(places.values()))[1]).__name__
    found = [
        Limit(
            "route",
            "experimental",
            f"no family describes it; found were {len(places)} routers of class {kind} with {experts} "
            f"experts, top-{attribute(config, top_k)}, that score by {trial.scoring}",
        )
    ]
    known = RECOMPUTED | {one.name for one in carried}
    known |= {name for name, switch in SWITCHED.items() if not attribute(config, switch)}
    others = [name for name in inspect.signature(layer.forward).parameters if name not in known]
    if others:
        reason = f"its layers are given {others[0]}, of which it is not known where it comes from"
        found.append(Limit("suffix", "unsupported", reason))
    return found


def _refused(config: Any, reason: str) -> UserError:
    return UserError(
        f"model type '{config.model_type}' has routers, but {reason}",
        "use a model of a family that `roma-ds ls families` lists",
    )


def _record(network: Any) -> Any:
    """What transformers records as router logits, of the causal LM or a model in it; None if nothing."""
    for made in network.modules():
        record = (getattr(type(made), "_can_record_outputs", None) or {}).get(RECORD)
        if record is not None:
            return record
    return None


def _can_be_packed(network: Any, layers: str) -> bool:
    """Whether every layer has attention that can be exchanged for that of packed sequences."""
    if not getattr(type(network), "_supports_attention_backend", False):
        return False
    if set(getattr(network.config, "layer_types", None) or ()) - set(ATTENTIONS):
        return False
    recorded = getattr(type(network), "_can_record_outputs", None) or {}
    attention = recorded.get("attentions")
    return isinstance(attention, type) and all(
        any(isinstance(module, attention) for module in layer.modules())
        for layer in network.get_submodule(layers)
    )


def _routers(config: Any, network: Any, record: Any) -> dict[int, tuple[str, Any]]:
    """By layer: the router's path in the network, and the router."""
    recorders = record if isinstance(record, list) else [record]
    wanted = [getattr(recorder, "target_class", recorder) for recorder in recorders]
    if len(wanted) != 1:
        raise _refused(config, f"{len(wanted)} kinds of them in a layer")
    found: dict[int, tuple[str, Any]] = {}
    for name, module in network.named_modules():
        match = _NUMBERED.match(name)
        if match is None or type(module) is not wanted[0]:
            continue
        if int(match[2]) in found:
            raise _refused(config, f"layer {match[2]} has several")
        found[int(match[2])] = (name, module)
    if len({_NUMBERED.sub(r"\1.\3", name) for name, _ in found.values()}) != 1:
        kind = getattr(wanted[0], "__name__", str(wanted[0]))
        raise _refused(config, f"no or several places of a {kind} were found")
    return found


def _sizes(config: Any) -> tuple[str, str]:
    """Names of the config attributes with the number of experts and how many a token goes to."""
    experts, top_k = ([name for name in names if _is_number(config, name)] for names in (EXPERTS, TOP_K))
    if not experts or not top_k:
        raise _refused(config, "its config does not say how many experts there are and are chosen")
    return experts[0], top_k[0]


def _is_number(config: Any, name: str) -> bool:
    """Whether an attribute is a whole number, or one for each layer."""
    value = attribute(config, name)
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(one, int) for one in value))


def _depth_attribute(config: Any, layers: Any) -> str:
    for name in DEPTHS:
        if getattr(config, name, None) == len(layers):
            return name
    raise _refused(config, "its config does not say how many layers there are")


def _block(layer: Any, inner: str) -> tuple[str, ...]:
    """Path in a layer of the module around its router, where that takes hidden states and nothing else."""
    path = inner.rpartition(".")[0]
    # A convolution behind the block reads what the block gave at the tokens before.
    if not path or any("Conv" in type(child).__name__ for child in layer.children()):
        return ()
    given = inspect.signature(layer.get_submodule(path).forward).parameters.values()
    plain = [one for one in given if one.kind is one.POSITIONAL_OR_KEYWORD]
    return (path,) if len(plain) == 1 else ()


def _streams(network: Any, layers: str) -> tuple[str, ...]:
    """Names of the parameters that belong neither to a layer, nor to a norm, nor to embedding and head."""
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    known = tuple(f"{path}." for path in (layers, *(_path_of(network, end) for end in ends)))
    return tuple(
        str(name)
        for name, _ in network.named_parameters()
        if not name.startswith(known)
        and "Norm" not in type(network.get_submodule(name.rpartition(".")[0])).__name__
    )


def _experts(layer: Any, inner: str) -> tuple[str, ...]:
    """Paths in a layer of the modules beside its router that have the weights of all experts, and modules in
    them: which of these are called, tokens may decide."""
    parent = inner.rpartition(".")[0]
    return tuple(
        f"{parent}.{name}" if parent else str(name)
        for name, child in layer.get_submodule(parent).named_children()
        if any(child.children()) and any(weight.dim() == 3 for weight in child.parameters(recurse=False))
    )


def _joined_at(network: Any, layers: str, kept: tuple[Carried, ...]) -> str | None:
    """Path of the module outside the layers that is given what the model keeps."""
    names = {one.name for one in kept}
    behind = (
        str(path)
        for path, module in network.named_modules()
        if not path.startswith(f"{layers}.") and names & inspect.signature(module.forward).parameters.keys()
    )
    return next(behind, None)


def _path_of(network: Any, module: Any) -> str:
    return next(str(name) for name, one in network.named_modules() if one is module)


def _gate_key(network: Any, place: str, trial: Trial, number: str) -> str:
    """The checkpoint's name of a router's weight, with `{layer}`."""
    from transformers.core_model_loading import revert_weight_conversion

    name = f"{place}.{trial.weight}.weight" if trial.weight else f"{place}.weight"
    (saved,) = revert_weight_conversion(network, {name: network.get_parameter(name)})
    return re.sub(rf"\.{number}\.", ".{layer}.", str(saved), count=1)
