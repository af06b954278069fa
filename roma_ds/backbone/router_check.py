"""Routers and experts in memory held against the files that they came from."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from roma_ds.backbone.checkpoint_files import CheckpointFiles
from roma_ds.errors import RomaError
from roma_ds.families import MoELayout


def check_routers(network: Any, layout: MoELayout, files: CheckpointFiles, rank: int) -> None:
    """Compare every gate in memory, or this rank's share of it under ZeRO-3, with the stored one.

    The key is the family's own, not that of transformers' renaming, so that a wrong one of either shows, and
    so does a wrong cut. layout: of `network`, with the layer numbers of the whole model. No collective.

    Raises RomaError that names a gate whose values differ.
    """
    for site in layout.sites:
        key = layout.gate_key(site.layer)
        if key not in files.keys:
            continue
        weight = network.get_submodule(site.module).weight
        held, start = _held(weight, rank)
        if held is None:
            continue
        stop = min(prod(files.stored(key).shape), start + held.numel())
        stored = files.read_flat(key, min(start, stop), stop).to(weight.dtype)
        if not torch.equal(held[: len(stored)].cpu(), stored):
            raise RomaError(
                f"the router of layer {site.layer} in memory is not {key} of {files.model.path}",
                "load the checkpoint with another version of transformers, and report this one",
            )


def _held(weight: Any, rank: int) -> tuple[torch.Tensor | None, int]:
    """The flat values of a parameter that are in this process, and the number of the first one."""
    share = getattr(weight, "ds_tensor", None)
    if share is None:
        return weight.detach().reshape(-1), 0
    # Elsewhere than in memory, or in another type.
    if share.final_location is not None or share.dtype != weight.dtype:
        return None, 0
    return share.detach(), rank * share.ds_numel
