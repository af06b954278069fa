"""Configs that belong to a known type of model and yet describe no network."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.family import Family, attribute

_KINDS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What transformers raises while it makes a network of values that it has not checked."""


class UnusableConfig(UserError):
    """No network can be made of a config, neither to train nor to evaluate."""


def shown(value: Any) -> str:
    """`value` as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def mentioned(text: str, values: Mapping[str, Any]) -> str:
    """The keys of `values` that a text names, each with its value; empty where it names none."""
    words = dict.fromkeys(re.findall(r"\w+", text))
    return "; ".join(f"{word} is {shown(values[word])}" for word in words if word in values)


@contextmanager
def making_faults(config: Any) -> Iterator[None]:
    """Turn what fails inside while a network is made of `config` into an UnusableConfig."""
    try:
        yield
    except _KINDS as error:
        said = (str(error).strip().splitlines() or ["nothing more is said"])[0]
        places = [frame.line for frame in traceback.extract_tb(error.__traceback__) if _is_model(frame)]
        at = f", at `{places[-1]}`" if places and places[-1] else ""
        values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
        found = (mentioned(f"{said} {_read_in(place)}", values) for place in reversed(places))
        read = next((f"; {names}" for names in found if names), "")
        raise UnusableConfig(
            f"no network can be made of this config of model type '{getattr(config, 'model_type', '?')}': "
            f"{type(error).__name__}: {said}{at}{read}",
            "give the whole config.json of the checkpoint, with values that the model takes",
        ) from error


def _read_in(line: str | None) -> str:
    """The config attributes that a line of a model's source reads, as words."""
    return " ".join(re.findall(r"config\.(\w+)", line or ""))


def _is_model(frame: traceback.FrameSummary) -> bool:
    return "modeling_" in frame.filename or frame.filename.endswith("modelling.py")


def require_routers(family: Family, config: Any) -> None:
    """Raises UserError where a model of a family's type is dense, and what `require_numbers` raises."""
    off = [
        f"{name} is {shown(value)}"
        for name, value in family.without_routers
        if attribute(config, name) == value
    ]
    if not off:
        require_numbers(family, config)
        off = [] if family.sparse_layers(config) else [f"no layer has routers (dense layers: {family.dense})"]
    if off:
        raise UserError(
            f"this model of type '{config.model_type}' has no routers: {off[0]}",
            "use a Mixture-of-Experts model",
        )


def require_numbers(family: Family, config: Any) -> None:
    """Raises UnusableConfig where the numbers of experts or heads make no sense, all in one message."""
    names = (family.experts_attribute, family.top_k_attribute, *family.dense.steps)
    values = {name: attribute(config, name) for name in names}
    problems = [
        f"{name} must be 1 or more, not {value}"
        for name, value in values.items()
        for each in (value if isinstance(value, list) else [value])
        if not isinstance(each, int) or each < 1
    ]
    if not problems and family.top_k(config) > family.experts(config):
        experts, top_k = names[:2]
        problems.append(f"{top_k} is {values[top_k]}, more than the {values[experts]} of {experts}")
    problems.extend(_head_problems(config))
    if not problems:
        problems.extend(_group_problems(family, config))
    if problems:
        raise UnusableConfig(
            f"a config of model type '{config.model_type}' cannot be used: {'; '.join(problems)}",
            "give the config.json that belongs to the checkpoint",
        )


def _head_problems(config: Any) -> Iterator[str]:
    """Numbers of heads that do not divide what they share; nothing where a config has them by layer."""
    hidden, heads = attribute(config, "hidden_size"), attribute(config, "num_attention_heads")
    shared = attribute(config, "num_key_value_heads") or heads
    by_layer = not (isinstance(heads, int) and isinstance(shared, int))
    if not heads or by_layer or attribute(config, "kv_lora_rank"):
        return
    if heads % shared:
        yield f"num_attention_heads is {heads}, no multiple of the {shared} of num_key_value_heads"
    if hidden and not attribute(config, "head_dim") and hidden % heads:
        yield f"hidden_size is {hidden}, no multiple of the {heads} of num_attention_heads"


def _group_problems(family: Family, config: Any) -> Iterator[str]:
    """Groups of experts, of which a token goes to some, that the experts cannot be divided into."""
    groups, chosen = getattr(config, "n_group", None), getattr(config, "topk_group", None)
    method = getattr(config, "topk_method", None)
    if method == "greedy" or (groups is None and method != "group_limited_greedy"):
        return
    if not isinstance(groups, int):
        yield f"n_group must be a number where topk_method is {method}, not {groups}"
        return
    experts, top_k = family.experts(config), family.top_k(config)
    if groups < 1 or experts % groups:
        yield f"{family.experts_attribute} is {experts}, no multiple of the {groups} of n_group"
    elif not isinstance(chosen, int) or not 1 <= chosen <= groups:
        yield f"topk_group is {chosen}, which must be 1 to the {groups} of n_group"
    elif top_k > chosen * (experts // groups):
        yield (
            f"{family.top_k_attribute} is {top_k}, more than the {chosen * (experts // groups)} experts of "
            f"{chosen} groups (topk_group)"
        )
