"""Checkpoints of several parts, such as text and vision: their text part as a causal LM of its own.

The config of the text part stands for the model everywhere, and remembers the whole one that it is from.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from roma_ds.errors import UserError
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.families.unusable_config import making_faults

TEXT, WHOLE = "text_config", "whole_config"
"""Names of the text part in a whole config, and of the whole one in the text part that `text_part` gives."""
BELONGING = ("dtype", "eos_token_id", "bos_token_id", "pad_token_id")
"""What a whole config may say of its text part, where that does not say it itself."""


def text_part(config: Any) -> Any:
    """The config of the text part of a checkpoint, with what the whole config says of it.

    `config` itself where it has no such part.
    """
    text = getattr(config, TEXT, None)
    if text is None or not hasattr(text, "model_type"):
        return config
    text = deepcopy(text)
    for name in BELONGING:
        stated = getattr(config, name, None)
        if getattr(text, name, None) is None and stated is not None:
            setattr(text, name, stated)
    # A head of the whole network is tied as the whole config says.
    if getattr(whole_class(config), "_tied_weights_keys", None) and hasattr(config, "tie_word_embeddings"):
        text.tie_word_embeddings = config.tie_word_embeddings
    text.name_or_path = config.name_or_path
    setattr(text, WHOLE, config)
    return text


def whole_config(config: Any) -> Any | None:
    """The config of the whole checkpoint that a text part is from; None where it is none."""
    return getattr(config, WHOLE, None)


def whole_class(config: Any) -> Any | None:
    """transformers' class of a network of all parts of a whole config that gives logits; None without one."""
    from transformers.models.auto import modeling_auto

    tables = (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    )
    for table in tables:
        found = table.get(type(config), None)
        for one in found if isinstance(found, tuple) else (found,):
            if getattr(one, "config_class", None) is type(config):
                return one
    return None


@dataclass(frozen=True)
class TextNetwork:
    """Where the causal LM of the text part lies in the network of a whole checkpoint."""

    network: Any
    """The whole one, on the meta device."""
    text: Any
    """The causal LM, likewise."""
    places: tuple[tuple[str, str], ...]
    """Starts of names in the whole network, with what they are in the causal LM."""

    def inner(self, name: str) -> str | None:
        """Name in the causal LM of what is called `name` in the whole network; None for other parts."""
        return next((new + name[len(old) :] for old, new in self.places if name.startswith(old)), None)

    def outer(self, name: str) -> str:
        """Name in the whole network of what is called `name` in the causal LM."""
        return next(old + name[len(new) :] for old, new in self.places if name.startswith(new))


def text_network(config: Any) -> TextNetwork | None:
    """The whole network that the text part `config` is from; None where it is from none.

    Raises UserError where transformers has none in which the causal LM of the text part can be found.
    """
    return None if whole_config(config) is None else _found(_Key(config))


class _Key:
    """A config that is equal to others with the same values."""

    def __init__(self, config: Any) -> None:
        self.config, self._text = config, config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@lru_cache(maxsize=2)
def _found(key: _Key) -> TextNetwork:
    import torch

    config, whole = key.config, whole_config(key.config)
    kind, causal = whole_class(whole), causal_lm_class(type(config))
    if kind is None or causal is None:
        raise _unfit(whole, "transformers has no class of it that gives logits of text")
    with making_faults(whole), torch.device("meta"):
        network = kind._from_config(deepcopy(whole), dtype=torch.float32)
        text = causal._from_config(deepcopy(config), dtype=torch.float32)
    places = tuple(_places(network, text))
    found = TextNetwork(network, text, places)
    names = network.state_dict(keep_vars=True)
    lost = [name for name in text.state_dict() if _lacks(found, name, names)]
    if not places or lost:
        raise _unfit(whole, f"its network has no {lost[0] if lost else config.model_type}")
    return found


def _places(network: Any, text: Any) -> Iterator[tuple[str, str]]:
    modules = dict(network.named_modules())
    alike = next((name for name, one in modules.items() if type(one) is type(text)), None)
    if alike is not None:
        yield f"{alike}.", ""
        return
    base = getattr(text, text.base_model_prefix)
    inside = next((name for name, one in modules.items() if type(one) is type(base)), None)
    heads = [
        next((name for name, one in owner.named_modules() if one is owner.get_output_embeddings()), None)
        for owner in (network, text)
    ]
    if inside is not None and None not in heads:
        yield f"{inside}.", f"{text.base_model_prefix}."
        yield f"{heads[0]}.", f"{heads[1]}."


def _lacks(found: TextNetwork, name: str, names: Any) -> bool:
    try:
        return found.outer(name) not in names
    except StopIteration:
        return True


def _unfit(config: Any, reason: str) -> UserError:
    return UserError(
        f"the text part of model type '{config.model_type}' cannot be used by itself: {reason}",
        "use a checkpoint of the text model alone",
    )
