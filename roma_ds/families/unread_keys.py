"""Tensors of a checkpoint that no causal LM of transformers takes, and that are no sign of a wrong config."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from roma_ds.families.composite import TextNetwork
from roma_ds.families.detection import family_of

_FURTHER = re.compile(r"(^|\.)mtp(_[a-z_]+)?\.")
"""In names of modules that predict further tokens than the next one."""
_JOINED = ".eh_proj."
"""In names of the product that such a module begins with, where it is stored as one more decoder layer."""


class UnreadKeys:
    """Which tensors without a place are left alone, by their names in the network."""

    def __init__(self, network: Any, within: TextNetwork | None) -> None:
        """network: the causal LM. within: where it lies in the network of a checkpoint with other parts."""
        self._whole = _known(network if within is None else within.network)
        self._text = _known(network)
        self._parts = set() if within is None else set(within.network.state_dict())
        family = family_of(network.config)
        self._layer = re.compile(rf"{re.escape(family.layers)}\.(\d+)\.")
        self._depth = family.depth(network.config)

    def strays(self, names: Collection[tuple[str, str | None]]) -> set[str]:
        """Those that are not left alone, by their first name.

        names: in the network of the checkpoint, and in the causal LM, None where it is of another part.
        """
        layers = [self._layer.match(inner) for _, inner in names if inner and _JOINED in inner]
        further = {int(found[1]) for found in layers if found} - set(range(self._depth))
        return {outer for outer, inner in names if not self._is_known(outer, inner, further)}

    def _is_known(self, outer: str, inner: str | None, further: set[int]) -> bool:
        if self._whole.search(outer) or _FURTHER.search(outer):
            return True
        if inner is None:
            return outer in self._parts
        layer = self._layer.match(inner)
        return bool(self._text.search(inner)) or (layer is not None and int(layer[1]) in further)


def _known(network: Any) -> re.Pattern[str]:
    """The library's own patterns: of a class, and of buffers that were once saved."""
    patterns = list(network._keys_to_ignore_on_load_unexpected or ())
    patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name, _ in network.named_buffers()):
        patterns.append(r"(^|\.)position_ids$")
    return re.compile("|".join(f"(?:{one})" for one in patterns))
