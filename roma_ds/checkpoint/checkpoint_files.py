"""The tensors of a checkpoint by the keys and in the shapes that transformers' rules speak of.

What is stored as numbers is read as it is; what is stored in codes is decoded part by part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch

from roma_ds.checkpoint.conversion import Conversion
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.raw_files import COMPLETE, RawFiles
from roma_ds.checkpoint.skeleton import blank_network
from roma_ds.checkpoint.stored.decoding import Decoding
from roma_ds.checkpoint.stored_tensor import Placed
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import family_of
from roma_ds.families.composite import text_network

_NUMBERED = re.compile(r"\.\d+\.")
"""In keys of layers."""


class CheckpointFiles:
    """The tensors of a checkpoint by key; a shard is opened, or fetched from the hub, when first needed.

    Of what is stored in codes the key is that of the weight, and what is read is decoded, in float32. Raises
    UserError where the folder or hub id has no safetensors files, or one is missing or damaged, and where
    its weights are stored in a way that cannot be decoded.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self.raw = RawFiles(model)
        """The tensors as stored."""
        self._parts: dict[str, list[str]] | None = None
        if self.raw.is_sharded:
            placed = self.raw.keys
            self.raw.keys = {key: name for key, name in placed.items() if not self._is_twin(key, placed)}
        self.decoding = Decoding(self.raw)
        """What is stored in codes."""
        self.keys: Mapping[str, str] = self.decoding.keys
        """Key of each tensor, with the name of the file that holds it, or its codes."""

    def _is_twin(self, key: str, placed: Mapping[str, str]) -> bool:
        """Whether an index places a tied head, or embedding, in a file that holds the other one alone."""
        other = self.tied_twin(key, placed)
        if other is None:
            return False
        try:
            return key not in self.raw.header(placed[key]) and other in self.raw.header(placed[other])
        except UserError:
            # `check_shards` names all files that are absent or damaged at once.
            return False

    def tied_twin(self, key: str, keys: Iterable[str]) -> str | None:
        """Which of `keys` holds the tensor that `key` stands for too, where a model's head is its embedding.

        None for any other tensor.
        """
        if _NUMBERED.search(key) or not getattr(self.config, "tie_word_embeddings", False):
            return None
        family, name_of = family_of(self.config), self.conversion.name_of
        ends = [f"{family.embedding}.weight", f"{family.head}.weight"]
        if name_of(key) not in ends:
            return None
        twin = ends[1 - ends.index(name_of(key))]
        return next((one for one in keys if not _NUMBERED.search(one) and name_of(one) == twin), None)

    @cached_property
    def config(self) -> Any:
        """The transformers config of the whole model; not to be changed."""
        return load_config(self.model)

    @cached_property
    def conversion(self) -> Conversion:
        """What becomes of its tensors in the whole network."""
        return Conversion(blank_network(self.model, self.config), text_network(self.config))

    @property
    def stored_bytes(self) -> int:
        """Of all its tensors, as stored; opens every file. Raises UserError where one is absent."""
        return sum(self.raw.place(key).size for key in self.raw.keys)

    def place(self, key: str) -> Placed:
        """Type and shape of a tensor as it is read. Raises UserError where its file does not have it."""
        return self.decoding.find(key) or self.raw.place(key)

    def by_part(self, part_of: Callable[[str], str]) -> Mapping[str, list[str]]:
        """Keys by what `part_of` makes of them; asked once for each key, then kept."""
        if self._parts is None:
            found: dict[str, list[str]] = {}
            for key in self.keys:
                found.setdefault(part_of(key), []).append(key)
            self._parts = found
        return self._parts

    def under(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`."""
        return [key for key in self.keys if key.startswith(prefix)]

    def check_shards(self) -> None:
        """Open every file and look for every tensor in it.

        Raises UserError that names each file that is absent or damaged, and each that lacks a tensor which
        the index places there.
        """
        problems, untied = [], False
        placed = self.raw.keys
        for name in sorted(set(placed.values())):
            try:
                header = self.raw.header(name)
            except UserError as error:
                problems.append(error.message)
                continue
            lost = [key for key, place in placed.items() if place == name and key not in header]
            if lost:
                problems.append(
                    f"model.path: {name} of {self.model.path} lacks {lost[0]}, which the index places there"
                    + (f", and {len(lost) - 1} more" if len(lost) > 1 else "")
                )
                untied = untied or any(key.endswith("head.weight") for key in lost)
        if problems:
            tie = ", or set tie_word_embeddings in config.json if its head is its embedding"
            raise UserError("\n".join(problems), COMPLETE + (tie if untied else ""))

    def read(self, key: str) -> torch.Tensor:
        """The tensor of that key, on the CPU in its stored type, or decoded, in memory of its own.

        Raises UserError where the file ends too early.
        """
        place = self.place(key)
        return self.read_flat(key, 0, prod(place.shape)).reshape(place.shape)

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` - 1 of the flattened tensor, as `read` does.

        No other byte is read of what is stored as numbers; of codes the rows that cover them are decoded.
        """
        found = self.decoding.find(key)
        return self.raw.read_flat(key, start, stop) if found is None else found.flat(self.raw, start, stop)
