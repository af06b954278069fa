"""Published models: their configs and what their publishers say about their size, each with its source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.own_models import register_own_models


@dataclass(frozen=True)
class PublishedModel:
    """One model as published."""

    name: str
    """Short name, as `names` lists it."""
    hub: str
    """Hub id of the checkpoint."""
    config: dict[str, Any]
    """Of its config.json what decides shapes, routing and positions."""
    total: str
    """Parameters as the publisher writes them, such as `6.9B`."""
    active: str | None
    """Parameters that a token meets, likewise; None where the publisher gives none for this checkpoint."""
    embedding_is_active: bool
    """Whether the publisher's `active` counts the token embedding."""
    weights: str
    """Parameters of the checkpoint's own tensors, all digits, or as many as are known, such as `21.83B`."""
    config_source: str
    """Where the config's values are from."""
    size_source: str
    """Where the publisher's two counts are from."""
    weights_source: str
    """Where the count of the tensors is from."""
    note: str
    """What differs from the checkpoint, or has to be known to compare; may be empty."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """Values of the checkpoint that are no parameters of the causal LM here, by what they are for. Where they
    are given, they and the parameters add up to `weights`."""
    total_with: Sequence[str] = ()
    """Which of `beside` the publisher's `total` counts."""
    active_with: Sequence[str] = ()
    """Which of `beside` the publisher's `active` counts."""
    embedding_is_in_total: bool = True
    """Whether the publisher's `total` counts the token embedding."""


def _folder() -> Any:
    return files("roma_ds.families") / "published_models"


@cache
def names() -> tuple[str, ...]:
    """Short names of all published models known here, sorted."""
    found = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


def published_model(name: str) -> PublishedModel:
    """The record of a model. Raises UserError where there is none of that name."""
    if name not in names():
        raise UserError(f"no published model is called '{name}'", f"use one of {', '.join(names())}")
    return PublishedModel(name=name, **json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8")))


def config(name: str) -> Any:
    """The transformers config of a model. Raises UserError where there is none of that name."""
    from transformers import AutoConfig

    register_own_models()
    values = dict(published_model(name).config)
    return AutoConfig.for_model(values.pop("model_type"), **values)
