"""Find the routers of a real model and check them against what its family and config say."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.families.family import Family, attribute
from roma_ds.families.layout import MoELayout, RouterSite
from roma_ds.families.recorded import recorded_family, unrecorded
from roma_ds.families.registry import FAMILIES
from roma_ds.families.unusable_config import UnusableConfig, require_numbers, require_routers


def family_of(config: Any) -> Family:
    """The family of a model config, by its `model_type`, or one made from what transformers records of it.

    Raises UserError for dense models, and for those whose routers cannot be used; UnusableConfig, one of
    them, where the config describes no network.
    """
    model_type = getattr(config, "model_type", "?")
    for family in FAMILIES:
        known = model_type in family.model_types
        if known and not any(attribute(config, name) for name in family.by_detection):
            require_routers(family, config)
            return family
    recorded = recorded_family(config)
    if recorded is not None:
        require_numbers(recorded, config)
        return recorded
    types = ", ".join(t for family in FAMILIES for t in family.model_types)
    stated = unrecorded(config)
    if stated is None:
        said = f"model type '{model_type}' has no routers that roma_ds knows"
    else:
        has_class = causal_lm_class(type(config)) is not None
        why = (
            "no routers of it were found" if has_class else "transformers has no causal language model of it"
        )
        said = f"model type '{model_type}' may be sparse ({stated}), but {why}, so it cannot be trained here"
    raise UserError(said, f"use a Mixture-of-Experts model of one of these types: {types}")


def has_routers(config: Any) -> bool:
    """Whether a model config is of a family, known or recorded, whose routers can be used.

    Raises UnusableConfig where it describes no network.
    """
    return why_untrained(config) is None


def why_untrained(config: Any) -> str | None:
    """Why no router of a model can be used, in words; None where they can. Raises as `has_routers`."""
    try:
        family_of(config)
    except UnusableConfig:
        raise
    except UserError as error:
        return error.message
    return None


def _shape(parameter: Any) -> tuple[int, ...]:
    # Under ZeRO-3 a partitioned parameter reports shape (0,); DeepSpeed keeps the real one in ds_shape.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def detect(model: Any, held: Collection[int] | None = None) -> MoELayout:
    """The routers of `model` (a transformers causal LM, partitioned by ZeRO-3 or not), in layer order.

    held: numbers of the decoder layers that are there, where it is a part of a model. Raises UserError when
    there is none in the whole model, or a weight's shape disagrees with the config.
    """
    family, config = family_of(model.config), model.config
    inside = re.compile(rf"{re.escape(family.layers)}\.(\d+)\.")
    sites = []
    for name, module in model.named_modules():
        if not family.is_router(module):
            continue
        if family.place and not name.endswith(f".{family.place}"):
            continue
        match = inside.match(f"{name}.")
        if match is None:
            raise UserError(
                f"router {name} lies in no numbered layer", "this checkpoint layout is not supported"
            )
        product = f"{name}.{family.weight}" if family.weight else name
        source = product if family.logits_from == "product" else name
        rows, width = _shape(model.get_parameter(f"{product}.weight"))
        entries = rows - (family.gate_rows(config) - family.experts(config))
        sites.append(RouterSite(int(match.group(1)), name, entries, width, product, source, rows))
    sites.sort(key=lambda site: site.layer)
    if not sites and held is None:
        raise UserError(
            f"no router of class {family.router_class} was found in this {family.name} model",
            "check that the checkpoint has sparse layers",
        )
    wanted = (family.gate_rows(config), family.gate_width(config))
    for site in sites:
        if (site.rows, site.hidden) != wanted:
            raise UserError(
                f"router {site.module} has shape {(site.rows, site.hidden)}, the config says {wanted}",
                "use a config.json that belongs to these weights",
            )
    found, stated = tuple(site.layer for site in sites), family.sparse_layers(config)
    stated = tuple(layer for layer in stated if held is None or layer in held)
    if found != stated:
        raise UserError(
            f"layers {list(found)} have routers, by the config it would be layers {list(stated)}",
            "use a config.json that belongs to these weights",
        )
    return MoELayout(family, tuple(sites), family.top_k(config), family.zeros(config))
