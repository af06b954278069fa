"""The network that transformers itself runs for a checkpoint: a whole one where it has several parts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.families.composite import whole_class, whole_config
from roma_ds.families.unusable_config import making_faults


def library_class(config: Any) -> Any:
    """transformers' class that gives logits of text for the checkpoint of a config.

    config: as `load_config` gives it, that of the text part where there are others. Raises UserError where
    there is no such class.
    """
    whole = whole_config(config)
    found = causal_lm_class(type(config)) if whole is None else whole_class(whole)
    if found is None:
        raise UserError(
            f"transformers has no network of model type '{(whole or config).model_type}' that gives logits "
            "of text",
            "use a causal language model; `roma-ds ls families` lists those that can be trained",
        )
    return found


def require_network(config: Any) -> None:
    """Raises UserError where no such network can be made. No weight is read or made."""
    import torch

    whole, kind = whole_config(config) or config, library_class(config)
    with making_faults(whole), torch.device("meta"):
        kind._from_config(deepcopy(whole))
