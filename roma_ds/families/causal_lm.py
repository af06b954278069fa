"""The class of a causal LM that a config describes, and a network of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

LARGE = 2**24
"""Values of a tensor that is a parameter: no buffer of a model is so large."""


def causal_lm_class(config_class: Any) -> Any:
    """transformers' class of a causal LM for a config's class; None where it has none.

    Some models have such a class and are not in the library's table of them: it is looked up beside their
    config's class.
    """
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)
    if found is not None:
        found = found[0] if isinstance(found, tuple) else found
        # For a config of several parts the table may name the class of its text part.
        parts = getattr(config_class, "sub_configs_defaults", {})
        return None if "text_config" in parts and found.config_class is not config_class else found
    home = config_class.__module__
    if not home.startswith("transformers.models."):
        return None
    try:
        module = import_module(home.replace("configuration_", "modeling_"))
    except ImportError:
        return None
    for name, value in vars(module).items():
        own = isinstance(value, type) and issubclass(value, PreTrainedModel)
        if own and name.endswith("ForCausalLM") and value.config_class is config_class:
            return value
    return None


def causal_lm(config: Any, dtype: Any, trust_remote_code: bool) -> Any:
    """A network of `config`, to be made under `init_empty_weights`, which empties its parameters.

    Raises what transformers raises where the config describes none.
    """
    from transformers import AutoModelForCausalLM

    found = causal_lm_class(type(config))
    with unfilled():
        if found is None or trust_remote_code:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        return found._from_config(config, dtype=dtype)


def unfilled() -> Any:
    """A context in which `torch.zeros` gives large tensors on the meta device.

    Memory that nothing writes to is not taken, but one family fills its experts with zeros, up to 21 GB a
    layer, before they can be emptied.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, made: Any, types: Any, args: Any = (), options: Any = None) -> Any:
            options = options or {}
            if made is torch.zeros and "device" not in options:
                blank = made(*args, **options, device="meta")
                if blank.numel() >= LARGE:
                    return blank
            return made(*args, **options)

    return Unfilled()
