"""Configs that belong to a known type of model and yet describe no network."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.family import Family

_KINDS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What transformers raises while it makes a network of values that it has not checked."""


class UnusableConfig(UserError):
    """No network can be made of a config, neither to train nor to evaluate."""


@contextmanager
def making_faults(config: Any) -> Iterator[None]:
    """Turn what fails inside while a network is made of `config` into an UnusableConfig."""
    try:
        yield
    except _KINDS as error:
        places = [frame.line for frame in traceback.extract_tb(error.__traceback__) if _is_model(frame)]
        at = f", at `{places[-1]}`" if places and places[-1] else ""
        said = (str(error).strip().splitlines() or ["nothing more is said"])[0]
        raise UnusableConfig(
            f"no network can be made of this config of model type '{getattr(config, 'model_type', '?')}': "
            f"{type(error).__name__}: {said}{at}",
            "use a model of text alone: this config has its sizes in text_config"
            if getattr(config, "text_config", None) is not None
            else "give the whole config.json of the checkpoint, with values that the model takes",
        ) from error


def _is_model(frame: traceback.FrameSummary) -> bool:
    return "modeling_" in frame.filename


def require_numbers(family: Family, config: Any) -> None:
    """Raises UnusableConfig where the numbers of experts or heads make no sense, all in one message."""
    names = (family.experts_attribute, family.top_k_attribute, *family.dense.steps)
    values = {name: getattr(config, name, None) for name in names}
    problems = [
        f"{name} must be 1 or more, not {value}"
        for name, value in values.items()
        if not isinstance(value, int) or value < 1
    ]
    if not problems and family.top_k(config) > family.experts(config):
        experts, top_k = names[:2]
        problems.append(f"{top_k} is {values[top_k]}, more than the {values[experts]} of {experts}")
    problems.extend(_head_problems(config))
    if problems:
        raise UnusableConfig(
            f"a config of model type '{config.model_type}' cannot be used: {'; '.join(problems)}",
            "give the config.json that belongs to the checkpoint",
        )


def _head_problems(config: Any) -> Iterator[str]:
    """Numbers of heads that do not divide what they share; nothing where a config has them by layer."""
    hidden = getattr(config, "hidden_size", None)
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) or heads
    by_layer = not (isinstance(heads, int) and isinstance(shared, int))
    if not heads or by_layer or getattr(config, "kv_lora_rank", None):
        return
    if heads % shared:
        yield f"num_attention_heads is {heads}, no multiple of the {shared} of num_key_value_heads"
    if hidden and not getattr(config, "head_dim", None) and hidden % heads:
        yield f"hidden_size is {hidden}, no multiple of the {heads} of num_attention_heads"
