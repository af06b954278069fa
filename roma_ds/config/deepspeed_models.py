"""What DeepSpeed itself would refuse in a resolved JSON, found without an engine. Imports DeepSpeed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from roma_ds.config.deepspeed_keys import MUST_BE
from roma_ds.config.deepspeed_sections import Scalars, judges
from roma_ds.config.schema import RunConfig
from roma_ds.config.spelling import did_you_mean

Json = dict[str, Any]
Problem = tuple[str, str]
"""Key path and what is wrong there."""

RAISED = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
"""What DeepSpeed's constructors raise beside what a model finds."""

LOSS_SCALE = frozenset(
    ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")
)


def judge(content: Json, off: frozenset[str]) -> Iterator[Problem]:
    """What DeepSpeed's models refuse in a resolved JSON without "auto".

    Numbers become what DeepSpeed reads (5e8 the integer). off: key paths of sections that are switched off:
    what is wrong in them is taken out of `content`, which DeepSpeed would not do.
    """
    scalars = {key: content[key] for key in Scalars.model_fields if key in content}
    yield from _held_against(Scalars, scalars, "", off)
    content.update(scalars)
    for key, model in judges().items():
        section = content.get(key)
        if section is None:
            content.pop(key, None)
        elif not isinstance(section, dict):
            yield key, f"expected a section, got {json.dumps(section)}"
        else:
            yield from _held_against(model, section, key, off)


def refused_by_engine(content: Json, run: RunConfig) -> Iterator[Problem]:
    """What only DeepSpeed's engine and optimizers refuse, or what training here cannot do with them."""
    for key, (only, reason) in MUST_BE.items():
        name, _, own = key.rpartition(".")
        section = content.get(name) if name else content
        value = section.get(own, only) if isinstance(section, dict) else only
        if value is not only:
            yield key, f"is {json.dumps(value)}, which is not supported: {reason}; delete it"
    zero = content["zero_optimization"]
    stage = zero["stage"]
    if stage in (2, 3) and zero.get("reduce_scatter", True):
        for key, harmless in (("prescale_gradients", False), ("gradient_predivide_factor", 1)):
            if content.get(key, harmless) != harmless:
                yield key, f"DeepSpeed's optimizer of stage {stage} refuses it; delete it"
    types = content.get("data_types")
    own = "bf16" if run.model.dtype == "bfloat16" else "fp32"
    for key, binds in (("param_dtype", True), ("grad_accum_dtype", own == "fp32" and stage == 0)):
        value = (types.get(key) if isinstance(types, dict) else None) or own
        if binds and str(value).lower() != own:
            clash = f"{run.source.name}: model.dtype {run.model.dtype} makes it {own}"
            yield f"data_types.{key}", f"is {json.dumps(value)}, but {clash}"


def whole_config_problem(content: Json) -> str | None:
    """What DeepSpeed says of a JSON without other problems; None where it takes it."""
    from deepspeed.runtime.config import DeepSpeedConfig

    # It follows from the other two and the number of ranks, which may not be there yet.
    tried = {key: copy.deepcopy(value) for key, value in content.items() if key != "train_batch_size"}
    try:
        DeepSpeedConfig(tried)
    except RAISED as error:
        return str(error) or type(error).__name__
    return None


def _held_against(model: type[BaseModel], section: Json, path: str, off: frozenset[str]) -> Iterator[Problem]:
    given = {key: value for key, value in section.items() if value != "auto"}
    while True:
        try:
            found = model(**copy.deepcopy(given))
        except ValidationError as refusal:
            errors = refusal.errors(include_url=False)
        except RAISED as error:
            yield path, str(error) or type(error).__name__
            return
        else:
            yield from _normalized(section, given, found, path)
            return
        # What is left is tried again without the faults, so that all of them come at once.
        dropped = False
        for fault in errors:
            keys = [part for part in fault["loc"] if isinstance(part, str)]
            where = ".".join([path, *keys] if path else keys)
            known = _drop(given, keys)
            dropped |= known
            if _within(where, off) and known:
                _drop(section, keys)
            else:
                yield where, _told(fault, model, keys, path)
        if not dropped:
            return


def _within(path: str, off: frozenset[str]) -> bool:
    return any(path.startswith(f"{section}.") for section in off)


def _drop(section: Json, keys: list[str]) -> bool:
    """Take the value at `keys` out of copies of what is around it; False where there is none."""
    if not keys or keys[0] not in section:
        return False
    if len(keys) == 1:
        del section[keys[0]]
        return True
    inner = section[keys[0]]
    if not isinstance(inner, dict):
        return False
    section[keys[0]] = inner = dict(inner)
    return _drop(inner, keys[1:])


def _told(error: Mapping[str, Any], model: type[BaseModel], keys: list[str], path: str) -> str:
    value, kind = error["input"], error["type"]
    got = json.dumps(value, default=str)
    if kind == "extra_forbidden":
        return _unknown(keys[-1], known_keys(_model_at(model, keys[:-1])), ".".join([path, *keys[:-1]]))
    if kind == "int_from_float":
        return f"must be a whole number, got {got}; write {max(1, round(value))}"
    if isinstance(value, str) and kind.startswith(("int_", "float_", "bool_")):
        return _text_for(value, "true or false" if kind.startswith("bool_") else "a number")
    if kind == "value_error":
        return str(error["ctx"]["error"])
    said = str(error["msg"]).replace("Input should be", "must be")
    return f"{said}, got {got}"


def _unknown(key: str, known: frozenset[str], section: str) -> str:
    if key in known:
        return "is given under two names; delete one"
    if section == "bf16" and key in LOSS_SCALE:
        return "unknown key: a loss is scaled in float16 alone, bfloat16 needs no scale; delete it"
    near = did_you_mean(key, known)
    return f"unknown key{near or f'; {section} has ' + ', '.join(sorted(known))}"


def _text_for(text: str, meant: str) -> str:
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_meant = isinstance(value, bool) if meant == "true or false" else type(value) in (int, float)
    write = f"; write {json.dumps(value)}" if is_meant else ""
    return f"is the text {json.dumps(text)} where {meant} is meant{write}"


def _normalized(section: Json, given: Json, found: BaseModel, path: str) -> Iterator[Problem]:
    """Put what was read in the place of what was written; a text or a truth value is no number.

    given: what of `section` was read.
    """
    names = {field.alias: name for name, field in type(found).model_fields.items() if field.alias}
    for key, value in given.items():
        where = f"{path}.{key}" if path else key
        read = getattr(found, names.get(key, key), value)
        if isinstance(value, dict) and isinstance(read, BaseModel):
            yield from _normalized(section[key], value, read, where)
        elif isinstance(value, str) and isinstance(read, bool | int | float):
            yield where, _text_for(value, "true or false" if isinstance(read, bool) else "a number")
        elif isinstance(value, bool) and not isinstance(read, bool) and isinstance(read, int | float):
            yield where, f"must be a number, got {json.dumps(value)}"
        elif isinstance(value, int | float) and isinstance(read, bool | int | float):
            section[key] = read


def known_keys(model: type[BaseModel]) -> frozenset[str]:
    """Keys that a model takes, under all their names."""
    fields = model.model_fields
    return frozenset(fields) | {field.alias for field in fields.values() if field.alias}


def _model_at(model: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    """The model of the section at `keys` inside `model`."""
    for key in keys:
        field = next(
            (field for name, field in model.model_fields.items() if key in (name, field.alias)), None
        )
        if field is None:
            break
        kinds = (field.annotation, *get_args(field.annotation))
        model = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model
        )
    return model
