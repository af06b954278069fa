"""Which model types of the installed transformers are Mixture-of-Experts causal language models."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.testing.tiny_sizes import MOE_TYPES

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""How configs name the number of their routed experts."""


def new_types(known: Collection[str] = MOE_TYPES) -> tuple[str, ...]:
    """The types that have routed experts and a causal language model here and are not among those known.

    A type has routed experts if a model of its config records router logits, or if its config has a number of
    experts. Modules whose source names neither are not imported: it would take half a minute.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    unknown = [name for name in CONFIG_MAPPING_NAMES if name not in known and _may_route(name)]
    return tuple(sorted(name for name in unknown if _routes(CONFIG_MAPPING[name])))


def _may_route(model_type: str) -> bool:
    """Whether the source of a type's module says anything of experts; True where there is no such file."""
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    name = model_type_to_module_name(model_type)
    source = Path(transformers.__file__).parent / "models" / name / f"modeling_{name}.py"
    words = ("router_logits", *EXPERT_COUNTS)
    return not source.is_file() or any(word in source.read_text("utf-8") for word in words)


def _routes(config_class: Any) -> bool:
    # Of a config of several parts the text part has a type of its own.
    causal = None if "text_config" in config_class.sub_configs else causal_lm_class(config_class)
    if causal is None or not causal.__name__.endswith("ForCausalLM"):
        return False
    named = {*getattr(config_class, "__dataclass_fields__", ()), *config_class.attribute_map}
    return not named.isdisjoint(EXPERT_COUNTS) or any(
        "router_logits" in (model._can_record_outputs or {})
        for model in _models_of(sys.modules[causal.__module__], causal.config_class)
    )


def _models_of(module: Any, config_class: Any) -> list[Any]:
    """The models of a config's class that a module defines or imports."""
    from transformers import PreTrainedModel

    classes = (value for value in vars(module).values() if isinstance(value, type))
    models = (one for one in classes if issubclass(one, PreTrainedModel))
    return [model for model in models if getattr(model, "config_class", None) is config_class]
