"""The types in which a checkpoint stores its routers, and what they leave of routers that were trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.families import MoELayout
from roma_ds.storage.gate_digest import FOR_CODES, TYPES

Weights = Mapping[int, torch.Tensor]
"""Router weights [experts, hidden] by layer number."""


class Survival(TypedDict):
    """What is left of an update where routers are stored as in their base."""

    dtype: str
    """Types of the stored gates, by torch's names."""
    changed: float
    """Share of the entries that differ from the base."""
    kept: float
    """Share of the update's size that is left along it: 1 where nothing is rounded."""
    exact: bool
    """Whether the trained values are values of these types."""


def stored_dtypes(files: CheckpointFiles, layout: MoELayout) -> dict[int, torch.dtype]:
    """Types of the gates in a checkpoint by layer, of `layout` with its stored names. Opens headers alone.

    Of gates in codes, the type that `merge` writes in their place.
    """
    keys = {layer: layout.gate_key(layer) for layer in layout.layers}
    return {
        layer: TYPES[FOR_CODES] if files.decoding.find(key) is not None else files.place(key).dtype
        for layer, key in keys.items()
        if key in files.keys
    }


def as_stored(weights: Weights, dtypes: Mapping[int, torch.dtype]) -> dict[int, torch.Tensor]:
    """`weights` rounded to the stored types, in types of their own; those of other layers as they are."""
    return {
        layer: weight.to(dtypes[layer]).to(weight.dtype) if layer in dtypes else weight
        for layer, weight in weights.items()
    }


def survival(base: Weights, trained: Weights, dtypes: Mapping[int, torch.dtype]) -> Survival:
    """What is left of `trained` - `base`, both float32, of the same layers."""
    changed, size, along, left, exact = 0, 0, 0.0, 0.0, True
    for layer, stored in as_stored(trained, dtypes).items():
        update = (trained[layer] - base[layer]).double()
        changed += int((stored != base[layer]).sum())
        size += update.numel()
        along += float(update.square().sum())
        left += float(((stored - base[layer]).double() * update).sum())
        exact = exact and torch.equal(stored, trained[layer])
    names = sorted({str(dtypes[layer]).removeprefix("torch.") for layer in trained if layer in dtypes})
    return Survival(
        dtype=", ".join(names), changed=changed / size, kept=left / along if along else 1.0, exact=exact
    )
