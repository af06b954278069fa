"""The safetensors files of a checkpoint, read tensor by tensor into memory of one's own.

Nothing is mapped: a mapped file counts as resident memory of the process for as long as any of its tensors is
alive, while what is read here is gone with its tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from roma_ds.checkpoint.conversion import Conversion
from roma_ds.checkpoint.loading import ask_hub, checkpoint, load_config, not_found
from roma_ds.checkpoint.skeleton import blank_network
from roma_ds.checkpoint.stored_tensor import StoredTensor, stored_tensors
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import family_of
from roma_ds.families.composite import text_network
from roma_ds.storage.atomic import read_json
from roma_ds.storage.hub import why_unreachable
from roma_ds.storage.raw_values import bytes_of, read_at

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_COMPLETE = "complete the checkpoint"
_NUMBERED = re.compile(r"\.\d+\.")
"""In keys of layers."""


class CheckpointFiles:
    """The tensors of a checkpoint by key; a shard is opened, or fetched from the hub, when first needed.

    Raises UserError where the folder or hub id has no safetensors files, or one is missing or damaged.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self._headers: dict[str, dict[str, StoredTensor]] = {}
        self._parts: dict[str, list[str]] | None = None
        if self._path(WHOLE, required=False) is not None:
            self.keys: Mapping[str, str] = dict.fromkeys(self._header(WHOLE), WHOLE)
            """Key of each tensor, with the name of the file that holds it."""
            return
        index = self._path(INDEX, required=False)
        if index is None:
            if not Path(checkpoint(model)).exists() and why_unreachable():
                raise not_found(model, WHOLE)
            raise UserError(
                f"model.path: {model.path} has neither {WHOLE} nor {INDEX}",
                "use a checkpoint in the safetensors format",
            )
        content = read_json(index)
        placed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise UserError(f"model.path: {index} has no weight_map", _COMPLETE)
        self.keys = {key: name for key, name in placed.items() if not self._is_twin(key, placed)}

    def _is_twin(self, key: str, placed: Mapping[str, str]) -> bool:
        """Whether an index places a tied head, or embedding, in a file that holds the other one alone."""
        other = self.tied_twin(key, placed)
        if other is None:
            return False
        try:
            return key not in self._header(placed[key]) and other in self._header(placed[other])
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

    def _path(self, name: str, required: bool = True) -> Path | None:
        place = Path(checkpoint(self.model))
        if place.is_dir():
            path = place / name
            # An index may hold a name that no file can have, which Path.is_file raises at.
            if os.path.isfile(path):
                return path
            if required:
                raise UserError(f"model.path: {path}, which the checkpoint names, is not there", _COMPLETE)
            return None
        return self._from_hub(name, required)

    def _from_hub(self, name: str, required: bool) -> Path | None:
        from transformers.utils import cached_file

        ask_hub(self.model)
        try:
            found = cached_file(
                self.model.path,
                name,
                revision=self.model.revision,
                _raise_exceptions_for_missing_entries=required,
            )
        except (OSError, ValueError) as error:
            reason = why_unreachable() or str(error).strip().splitlines()[0]
            raise UserError(
                f"model.path: {name} of '{self.model.path}' is neither here nor on the hub: {reason}",
                "give the folder of a checkpoint, or a hub id with network access",
            ) from error
        return Path(found) if found is not None else None

    def _header(self, name: str) -> dict[str, StoredTensor]:
        if name not in self._headers:
            path = self._path(name)
            assert path is not None
            try:
                self._headers[name] = stored_tensors(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"model.path: {path} is no readable safetensors file: {error}", _COMPLETE
                ) from error
        return self._headers[name]

    def place(self, key: str) -> StoredTensor:
        """Type, shape and place of a tensor. Raises UserError where its file does not have it."""
        found = self._header(self.keys[key]).get(key)
        if found is None:
            raise UserError(f"model.path: {self.keys[key]} of {self.model.path} lacks {key}", _COMPLETE)
        return found

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
        for name in sorted(set(self.keys.values())):
            try:
                header = self._header(name)
            except UserError as error:
                problems.append(error.message)
                continue
            lost = [key for key, place in self.keys.items() if place == name and key not in header]
            if lost:
                problems.append(
                    f"model.path: {name} of {self.model.path} lacks {lost[0]}, which the index places there"
                    + (f", and {len(lost) - 1} more" if len(lost) > 1 else "")
                )
                untied = untied or any(key.endswith("head.weight") for key in lost)
        if problems:
            tie = ", or set tie_word_embeddings in config.json if its head is its embedding"
            raise UserError("\n".join(problems), _COMPLETE + (tie if untied else ""))

    def read(self, key: str) -> torch.Tensor:
        """The tensor of that key, on the CPU in its stored type, in memory of its own.

        Raises UserError where the file ends too early.
        """
        place = self.place(key)
        return self.read_flat(key, 0, prod(place.shape)).reshape(place.shape)

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` - 1 of the flattened tensor, as `read` does; no other byte is read."""
        place = self.place(key)
        tensor = torch.empty(stop - start, dtype=place.dtype)
        try:
            with open(place.file, "rb", buffering=0) as file:
                begin = place.start + start * place.dtype.itemsize
                if not read_at(file.fileno(), bytes_of(tensor), begin):
                    raise EOFError(f"it ends within {key}")
        except (OSError, EOFError) as error:
            raise UserError(f"model.path: {place.file} cannot be read: {error}", _COMPLETE) from error
        return tensor
