"""Routers that a base checkpoint stores in codes: they are written back in plain numbers.

The tensors that their codes are made of go, and its config lists them among the modules that are not
quantized, so that other programs read the result too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from roma_ds.checkpoint.raw_files import RawFiles
from roma_ds.checkpoint.stored.decoding import Decoding, coded_parts
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families.composite import TEXT
from roma_ds.families.config_values import STORED_AS
from roma_ds.storage.atomic import read_json, write_json

CONFIG, OTHER = "config.json", "hf_quant_config.json"
_LISTS = {
    "fp8": "modules_to_not_convert",
    "awq": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
    "compressed-tensors": "ignore",
    "modelopt": "ignore",
}
"""Where each method lists the modules that it leaves as they are."""
_LISTED_ELSEWHERE = ("ignored_layers", "exclude_modules")
_HEAD = "lm_head"


@dataclass(frozen=True)
class CodedGates:
    """The routers of a base that are stored in codes, by key of the weight."""

    homes: Mapping[str, str] = field(default_factory=dict)
    """Files that hold the codes."""
    gone: frozenset[str] = frozenset()
    """Keys of all stored tensors that they are decoded from, or that say how inputs are rounded."""
    dense_head: bool = False
    """Whether the head is stored as it is."""

    def settle(self, folder: Path) -> None:
        """Let the config of the merged checkpoint in `folder` say that these modules are not quantized."""
        if not self.homes:
            return
        modules = sorted(key.removesuffix(".weight") for key in self.homes)
        config = read_json(folder / CONFIG)
        for owner in (config, config.get(TEXT)):
            for name in STORED_AS:
                if isinstance(owner, dict) and owner.get(name):
                    self._list(owner[name], modules)
        write_json(folder / CONFIG, config)
        if (folder / OTHER).is_file():
            other = read_json(folder / OTHER)
            if isinstance(other.get("quantization"), dict):
                self._list({"quant_method": "modelopt"} | other["quantization"], modules)
                listed = other["quantization"].setdefault("exclude_modules", [])
                listed.extend(module for module in modules if module not in listed)
                write_json(folder / OTHER, other)

    def _list(self, said: dict[str, Any], modules: list[str]) -> None:
        names = [name for name in (*_LISTS.values(), *_LISTED_ELSEWHERE) if isinstance(said.get(name), list)]
        for name in dict.fromkeys(names):
            said[name] = [*said[name], *(module for module in modules if module not in said[name])]
        if not names:
            # Without a list, readers leave the head out by themselves; with one, some do not.
            said[_LISTS[said["quant_method"]]] = [*([_HEAD] if self.dense_head else []), *modules]


def coded_gates(base: Path, routers: Mapping[str, torch.Tensor]) -> CodedGates:
    """Those of `routers`, by checkpoint key, that `base` stores in codes.

    Raises UserError where one has another shape there, and where the format has no place to say that a
    module is not quantized.
    """
    raw = RawFiles(ModelConfig(path=str(base)))
    parts = coded_parts(raw)
    mine = sorted(key for key in routers if key in parts)
    if not mine:
        return CodedGates()
    decoding = Decoding(raw)
    for key in mine:
        found = decoding.find(key)
        if found is None or found.shape != tuple(routers[key].shape):
            raise UserError(
                f"{key} has shape {found.shape if found else None} in {base}, "
                f"{tuple(routers[key].shape)} in the router file",
                "merge with the base model that the routers were trained on",
            )
    method = decoding.declared.method
    if method not in _LISTS:
        raise UserError(
            f"{base} stores the router {mine[0]} in codes ({method}), and its format has no list of modules "
            "that are not quantized",
            "merge with a copy of it in bfloat16, whose routers have the same keys",
        )
    gone = {stored for key in mine for stored in parts[key].values()}
    owners = {key.removesuffix("weight") for key in mine}
    unread = raw.keys.keys() - decoding.keys.keys()
    gone.update(key for key in unread if f"{key.rpartition('.')[0]}." in owners)
    homes = {key: raw.keys[parts[key]["codes"]] for key in mine}
    return CodedGates(homes, frozenset(gone), dense_head=f"{_HEAD}.weight" not in parts)
