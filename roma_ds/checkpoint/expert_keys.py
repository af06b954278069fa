"""Which stored tensors are those of routed experts: each of its own, or all of a layer in one."""

from __future__ import annotations

import re

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.families import MoELayout

_ONE = re.compile(r"\.experts\.\d+\.")


def expert_keys(files: CheckpointFiles, layout: MoELayout, layer: int) -> list[str]:
    """Keys of the routed experts of decoder layer `layer`, by the whole model's numbers, sorted."""
    keys = sorted(files.under(layout.family.stored_layer(layer)))
    # Without that name they are known by the shape: nothing else of a layer has a place for each of them.
    return [key for key in keys if ".experts." in key or stack_shape(key, files.place(key).shape, layout)]


def stack_shape(name: str, shape: tuple[int, ...], layout: MoELayout) -> tuple[int, int, int] | None:
    """[experts, a, b] of a tensor that has all experts of a layer, or their rows one after the other.

    None for any other: a convolution's weight has three dimensions too, and one of them is 1.
    """
    experts = layout.networks
    # Where a token may choose none of them, some models keep unused rows for that.
    if len(shape) == 3 and shape[0] in (experts, layout.experts) and 1 not in shape:
        return shape
    if len(shape) == 2 and ".experts." in name and not _ONE.search(name) and shape[0] % experts == 0:
        return experts, shape[0] // experts, shape[1]
    return None
