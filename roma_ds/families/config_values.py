"""The values of a config.json, before transformers makes a config of them.

What is only written otherwise than transformers wants it is put right; all that is wrong is named at once.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from roma_ds.families.composite import TEXT
from roma_ds.families.registry import FAMILIES
from roma_ds.families.unusable_config import UnusableConfig, shown

_IMPLEMENTATION = re.compile(r"^_?(attn|experts)_implementation")
_DTYPES = ("torch_dtype", "dtype")
RUN_BY_US = {
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "num_labels", "problem_type"),
}
"""Keys that say how a network is run or what the outputs of a classifier are called. They are left out: what
roma_ds computes does not depend on them."""
STORED_AS = ("quantization_config", "compression_config")
"""Keys that say how weights are stored. They are left out: weights are decoded while they are read, and
transformers must make a network of plain ones."""
READ_EVERYWHERE: dict[str, Any] = {
    "head_dim": int | None,
    "sliding_window": int | None,
    "layer_types": list | None,
    "mlp_layer_types": list | None,
    "per_layer_config": dict | None,
}
"""Types of keys that models read wherever they stand, also where their config class does not declare them."""
MOST_LAYERS = 10_000
"""More are taken for an error: even without weights each layer takes time and memory."""
_COUNT = re.compile(
    r"^(num|n)_|_(num|size|dim|rank|heads|experts|step|interval|freq|group|window)(_|$)"
    r"|^(moe_k|max_position_embeddings)$"
)
_MAY_BE_0 = re.compile(r"shared|nextn|mtp|(window|dense)_layers|per_layer_input")
_ADDED = re.compile(r"bias$|_replace$|_index$|^tie_|^use_qk")
_GROUP_METHODS = ("greedy", "group_limited_greedy")
_MAY_BE_NULL = re.compile(r"key_value_heads|head_dim|_id$|window|lora_rank|aux_loss|_tp$|shared|mtp")
"""Numbers that classes declare as possibly null and do without; of others they only say so."""
_SHARE = re.compile(r"(dropout|pdrop)$")
_NOT_NEGATIVE = re.compile(r"(_eps|epsilon|_replace)$|^initializer_range$")
_NOT_0 = re.compile(r"_scaling$")
_ACTIVATION = re.compile(r"(^|_)(act|activation|activation_function)$")


def settled(kind: Any, values: Mapping[str, Any], file: str) -> dict[str, Any]:
    """`values` as the config class `kind` takes them. file: where they are from, for the message.

    A whole number where a fraction is meant and the other way round, `torch.bfloat16` or `auto` as a dtype
    are put right; what says how the network is run, or how its weights are stored, is left out.
    Ranges are looked at for the types that a family describes.
    Raises UnusableConfig that names every key and value that cannot be used.
    """
    values = {**values, **_settled_text(kind, values, file)}
    found: dict[str, Any] = {}
    problems = []
    # Off, classes write a window of 0.
    unread = {"sliding_window"} if values.get("use_sliding_window") is False else set()
    for name, value in values.items():
        try:
            found[name] = value if name in unread and value in (0, None) else _taken(kind, name, value)
        except (TypeError, ValueError) as error:
            problems.append(f"{name} must be {error}, not {shown(value)}")
    pad, size = found.get("pad_token_id"), found.get("vocab_size")
    sized = not problems and _is_described(kind)
    if sized and isinstance(pad, int) and isinstance(size, int) and not -size <= pad < size:
        problems.append(f"pad_token_id must be less than the {size} of vocab_size, not {pad}")
    if problems:
        raise UnusableConfig(
            f"{file}, of model type '{kind.model_type}', cannot be used: {'; '.join(problems)}",
            "give the values that the checkpoint was saved with",
        )
    empty = {name for name in _DTYPES if not found.get(name)}
    left = {name for name in found if name in (*RUN_BY_US, *STORED_AS) or _IMPLEMENTATION.match(name)}
    left.update(name for name in found if _is_machinery(kind, name))
    return {name: value for name, value in found.items() if name not in empty | left}


@cache
def _reads(kind: Any, name: str) -> bool:
    """Whether the source of a config class or of its model speaks of a key."""
    file = Path(str(sys.modules[kind.__module__].__file__))
    files = (file, file.with_name(file.name.replace("configuration_", "modeling_")))
    return any(name in each.read_text("utf-8") for each in files if each.is_file())


def _settled_text(kind: Any, values: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The values of the text part of a config that has one, settled as its own class takes them."""
    text = values.get(TEXT)
    if not isinstance(text, dict) or TEXT not in kind.sub_configs_defaults:
        return {}
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    spec = kind.sub_configs_defaults[TEXT]
    stated = text.get("model_type", spec.model_type)
    own = CONFIG_MAPPING.get(stated, None)
    # A class that names that of its text part takes no other.
    own = spec.config_class if hasattr(spec.config_class, "sub_configs_defaults") else own
    if own is None:
        return {}
    return {TEXT: {**settled(own, text, f"{TEXT} of {file}"), "model_type": stated}}


def _is_described(kind: Any) -> bool:
    return any(kind.model_type in family.model_types for family in FAMILIES)


def _is_dense(kind: Any, name: str, value: Any) -> bool:
    """Whether a value says that a model of a family's type has no routers."""
    found = (
        one for family in FAMILIES if kind.model_type in family.model_types for one in family.without_routers
    )
    return (name, value) in found


def _is_machinery(kind: Any, name: str) -> bool:
    """Whether a key has the name of a part of transformers' config classes, which it would replace."""
    own = name in READ_EVERYWHERE or name in _DTYPES or name.startswith("rope_") or name in _declared(kind)
    return name == "auto_map" or (hasattr(kind, name) and not own and not _is_taken_up(kind, name))


def _is_taken_up(kind: Any, name: str) -> bool:
    """Whether a class makes something of a key that it does not declare.

    By a property of its own that can be set, or in its `__post_init__`, which then names the key.
    """
    from transformers import PreTrainedConfig

    found = getattr(kind, name, None)
    if isinstance(found, property) and found.fset is not None and not hasattr(PreTrainedConfig, name):
        return True
    own = (vars(one).get("__post_init__") for one in kind.__mro__ if not issubclass(PreTrainedConfig, one))
    return any(name in made.__code__.co_consts for made in own if made is not None)


def sizes_in(config: Any) -> dict[str, int]:
    """The keys of a config that decide shapes and how many there are of something."""
    values = config.to_dict().items()
    deciding = {key: value for key, value in values if _COUNT.search(key) or _ADDED.search(key)}
    return {key: value for key, value in deciding.items() if isinstance(value, int) and key not in RUN_BY_US}


def _taken(kind: Any, name: str, value: Any) -> Any:
    """The value as `kind` takes it. Raises TypeError or ValueError that goes on from "NAME must be "."""
    if name in _DTYPES:
        return _dtype(value)
    if name in STORED_AS:
        return _of(value, dict | None, "an object")
    if _IMPLEMENTATION.match(name):
        return _of(value, str | dict | bool | None, "a name")
    name = _declared_name(kind, name)
    if name in RUN_BY_US or not _is_described(kind):
        return _typed(kind, name, value) if name in _declared(kind) else value
    if name in ("rope_parameters", "rope_scaling"):
        _check_rope(kind, _of(value, dict | None, "an object"))
    elif name in ("rope_theta", "partial_rotary_factor"):
        _check_rope(kind, {name: value}, at_top=True)
    elif name in _declared(kind):
        value = _typed(kind, name, value)
        default = next(field.default for field in fields(kind) if field.name == name)
        counts = isinstance(default, int | float) and not isinstance(default, bool)
        if value is None and counts and not _MAY_BE_NULL.search(name):
            raise TypeError("a number")
        if not _is_dense(kind, name, value):
            _check(name, value)
    elif name in READ_EVERYWHERE:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        wrong = isinstance(value, bool) or not isinstance(value, READ_EVERYWHERE[name])
        if wrong:
            raise TypeError(_in_words(READ_EVERYWHERE[name]))
        if name == "per_layer_config" and value and not _reads(kind, name):
            raise ValueError("empty: layers that differ are not supported")
        _check(name, value)
    return value


def _declared(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _declared_name(kind: Any, name: str) -> str:
    """The field that a key sets, which may have a second name."""
    names, declared = getattr(kind, "attribute_map", {}), _declared(kind)
    others = (names.get(name), *(own for own, stored in names.items() if stored == name))
    return name if name in declared else next((other for other in others if other in declared), name)


def _in_words(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) else str(declared).replace(" | None", " or null")


def _of(value: Any, kinds: Any, meant: str) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(meant)
    return value


def _dtype(value: Any) -> str | None:
    """Without `torch.`, None for `auto`: the weights are read in the dtype that the run names."""
    import torch

    name = _of(value, str | None, "the name of a dtype")
    if name in (None, "auto"):
        return None
    name = str(name).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError("a dtype of torch")
    return name


def _typed(kind: Any, name: str, value: Any) -> Any:
    """The value in the type that the class declares; a number of the same size may change its type."""
    ways = [value]
    if isinstance(value, int) and not isinstance(value, bool):
        ways.append(float(value))
    elif isinstance(value, float) and value.is_integer():
        ways.append(int(value))
    said: Exception | None = None
    for way in ways:
        try:
            for validate in getattr(kind, "__validators__", {}).get(name, ()):
                validate(way)
            return way
        except (TypeError, ValueError) as error:
            said = said or error
    if not isinstance(said, TypeError):
        raise ValueError(f"otherwise ({said})")
    raise TypeError(_in_words(next(field.type for field in fields(kind) if field.name == name)))


def _check(name: str, value: Any) -> None:
    """Raises ValueError where a value of the right type makes no sense in a field of that name."""
    if _ACTIVATION.search(name) and isinstance(value, str):
        from transformers.activations import ACT2FN

        if value not in ACT2FN:
            raise ValueError("an activation that transformers has")
    if name == "topk_method" and value not in _GROUP_METHODS:
        raise ValueError(f"one of {', '.join(_GROUP_METHODS)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int) and _COUNT.search(name):
        _check_number(value, least=0 if _MAY_BE_0.search(name) else 1)
        if name.endswith("layers") and value > MOST_LAYERS:
            raise ValueError(f"{MOST_LAYERS:,} or less")
    elif _SHARE.search(name):
        _check_number(value, least=0)
        if value > 1:
            raise ValueError("1 or less")
    elif name == "clip_qkv":
        _check_number(value, least=0, over=True)
    else:
        _check_number(value, least=0 if _NOT_NEGATIVE.search(name) else None)
        if _NOT_0.search(name) and value == 0:
            raise ValueError("other than 0")


def _check_number(value: Any, least: int | None = None, over: bool = False) -> None:
    """Raises where it is no finite number, or less than `least`; over: or just that."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number")
    if not math.isfinite(value):
        raise ValueError("a finite number")
    if least is not None and (value < least or (over and value == least)):
        raise ValueError(f"more than {least}" if over else f"{least} or more")
    if isinstance(value, int) and abs(value) >= 2**62:
        raise ValueError("of a size that a tensor can have")


def _check_rope(kind: Any, value: dict[str, Any] | None, at_top: bool = False) -> None:
    """Raises where a rotary embedding cannot be made of these; what a type needs is left to transformers.

    at_top: whether `value` is a key of the config itself.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for name, part in (value or {}).items():
        try:
            if isinstance(part, dict):
                _check_rope(kind, part)
            elif name in ("rope_type", "type"):
                known = sorted({*ROPE_INIT_FUNCTIONS, "default"})
                if part not in (*known, "mrope"):
                    raise ValueError(f"one of {', '.join(known)}")
            elif name in ("rope_theta", "factor", "partial_rotary_factor"):
                _check_number(part, least=0, over=True)
                if name == "partial_rotary_factor" and (part > 1 or (part < 1 and not _reads(kind, name))):
                    raise ValueError("1 or less" if part > 1 else "1 in this type of model")
            elif isinstance(part, list):
                for one in part:
                    _check_number(one)
            elif isinstance(part, float):
                _check_number(part)
            elif isinstance(part, str):
                raise TypeError("a number")
        except (TypeError, ValueError) as error:
            if at_top:
                raise
            raise ValueError(f"an object whose {name} is {error}") from error
