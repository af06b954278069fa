"""Which stored tensors are those of routed experts: each of its own, or all of a layer in one."""

from __future__ import annotations

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.families import MoELayout


def expert_keys(files: CheckpointFiles, layout: MoELayout, layer: int) -> list[str]:
    """Keys of the routed experts of decoder layer `layer`, by the whole model's numbers, sorted."""
    keys = sorted(files.under(layout.family.stored_layer(layer)))
    named = [key for key in keys if ".experts." in key]
    # Other names are known by the shape: nothing else of a layer has a place for each expert in three.
    return named or [key for key in keys if _is_stack(files.place(key).shape, layout.experts)]


def _is_stack(shape: tuple[int, ...], experts: int) -> bool:
    return len(shape) == 3 and shape[0] == experts
