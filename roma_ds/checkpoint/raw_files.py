"""The safetensors files of a checkpoint, read tensor by tensor into memory of one's own.

Nothing is mapped: a mapped file counts as resident memory of the process for as long as any of its tensors is
alive, while what is read here is gone with its tensor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from roma_ds.checkpoint.loading import ask_hub, checkpoint, not_found
from roma_ds.checkpoint.stored_tensor import Placed, StoredTensor, UnreadType, stored_tensors
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.storage.atomic import read_json
from roma_ds.storage.hub import why_unreachable
from roma_ds.storage.raw_values import bytes_of, read_at

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
COMPLETE = "complete the checkpoint"
PLAIN_COPY = (
    "use a copy in bfloat16: load it by a library that decodes this format, and "
    "save_pretrained(..., save_original_format=False)"
)


class RawTensors(Protocol):
    """Stored tensors by key, in their stored types, in files or in memory."""

    @property
    def model(self) -> ModelConfig:
        """Whose they are."""

    def place(self, key: str) -> Placed:
        """Type and shape of a tensor."""

    def read(self, key: str) -> torch.Tensor:
        """The tensor of that key."""

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` - 1 of the flattened tensor; not to be changed."""


class RawFiles:
    """The tensors of a checkpoint by key, as stored; a shard is opened, or fetched, when first needed.

    Raises UserError where the folder or hub id has no safetensors files, or one is missing or damaged.
    """

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self._headers: dict[str, dict[str, StoredTensor]] = {}
        self.keys: Mapping[str, str]
        """Key of each tensor, with the name of the file that holds it, or should."""
        self.is_sharded = self.path(WHOLE, required=False) is None
        """Whether an index says which file holds what."""
        if not self.is_sharded:
            self.keys = dict.fromkeys(self.header(WHOLE), WHOLE)
            return
        index = self.path(INDEX, required=False)
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
            raise UserError(f"model.path: {index} has no weight_map", COMPLETE)
        self.keys = placed

    def path(self, name: str, required: bool = True) -> Path | None:
        """A file of the checkpoint, fetched where it is on a hub; None, or a UserError, without one."""
        place = Path(checkpoint(self.model))
        if place.is_dir():
            path = place / name
            # An index may hold a name that no file can have, which Path.is_file raises at.
            if os.path.isfile(path):
                return path
            if required:
                raise UserError(f"model.path: {path}, which the checkpoint names, is not there", COMPLETE)
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

    def header(self, name: str) -> dict[str, StoredTensor]:
        """What a file holds, by key. Raises UserError."""
        if name not in self._headers:
            path = self.path(name)
            assert path is not None
            try:
                self._headers[name] = stored_tensors(path)
            except UnreadType as error:
                raise UserError(f"model.path: {path}: {error}", PLAIN_COPY) from error
            except (OSError, ValueError) as error:
                raise UserError(
                    f"model.path: {path} is no readable safetensors file: {error}", COMPLETE
                ) from error
        return self._headers[name]

    def place(self, key: str) -> StoredTensor:
        """Type, shape and place of a tensor. Raises UserError where its file does not have it."""
        found = self.header(self.keys[key]).get(key)
        if found is None:
            raise UserError(f"model.path: {self.keys[key]} of {self.model.path} lacks {key}", COMPLETE)
        return found

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
            raise UserError(f"model.path: {place.file} cannot be read: {error}", COMPLETE) from error
        return tensor
