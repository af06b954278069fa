"""Bytes that a rank brings together in one optimizer step of training."""

from __future__ import annotations

from roma_ds.planner.memory import Setting
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.zero3_fetches import fetches


def gathered_bytes(sizes: ModelSizes, setting: Setting) -> int:
    """Of a step of one micro-batch, this rank's own share included; its log lines left out.

    At ZeRO-3 weights. At ZeRO 1 and 2 the routers alone, whose updates the ranks share out; gradients that
    are summed over the ranks are no gathering.
    """
    if setting.world_size == 1 or setting.stage == 0:
        return 0
    if setting.stage < 3:
        return sizes.trained * setting.itemsize
    found = fetches(sizes, setting.limits, setting.world_size, backward=True)
    return (found.gathered + found.persistent) * setting.itemsize
