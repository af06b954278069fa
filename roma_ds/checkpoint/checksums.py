"""Digests of some tensors of a checkpoint: its files themselves cannot tell that a value changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.expert_keys import expert_keys
from roma_ds.errors import UserError
from roma_ds.families import MoELayout

SAMPLE_BYTES = 16 << 20
"""Of a tensor that are read at most, from its start."""


def sampled_keys(files: CheckpointFiles, layout: MoELayout) -> list[str]:
    """Keys of all gates, and of one stored tensor of experts in each MoE layer: the same in every process."""
    chosen = []
    for layer in layout.layers:
        chosen.append(layout.gate_key(layer))
        experts = expert_keys(files, layout, layer)
        if experts:
            chosen.append(experts[int(_sha256(str(layer).encode())[:8], 16) % len(experts)])
    return [key for key in chosen if key in files.keys]


def checksums(files: CheckpointFiles, keys: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the stored bytes of tensors by key, of the first SAMPLE_BYTES where there are more.

    Of what is stored in codes these are the codes and all that decodes them, one after the other.
    """
    found = {}
    for key in keys:
        digest = hashlib.sha256()
        for stored in files.decoding.stored_keys(key):
            place = files.raw.place(stored)
            values = files.raw.read_flat(stored, 0, min(place.size, SAMPLE_BYTES) // place.dtype.itemsize)
            content: Any = values.view(torch.uint8).numpy()
            digest.update(content)
        found[key] = digest.hexdigest()
    return found


def refuse_changed(files: CheckpointFiles, recorded: Mapping[str, str], keys: Iterable[str]) -> None:
    """Raises UserError that names those of `keys` whose values are not the recorded ones."""
    keys = [key for key in keys if key in recorded]
    found = checksums(files, keys)
    changed = [key for key in keys if found[key] != recorded[key]]
    if changed:
        name = files.keys[changed[0]]
        raise UserError(
            f"model.path: {changed[0]} in {name} of {files.model.path} has other values than when routing "
            f"was collected, though the file's size and time are the same ({len(changed)} of {len(keys)} "
            "sampled tensors differ)",
            "restore that file; if the new values are right, delete the folder collect/ of the run",
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
