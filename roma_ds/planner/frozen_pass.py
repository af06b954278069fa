"""Which engine runs the frozen pass: by memory first, then by the bytes that have to move."""

from __future__ import annotations

import math
from typing import Literal

Engine = Literal["zero3", "stream"]
GIB = 2**30
RESERVE = 1.25
"""Activations, buffers and fragments on top of the weights."""
DISK_RATE = 1e9
"""Assumed bytes a second from the checkpoint's disk."""
LINK_RATES = {"cpu": 1e9, "cuda": 50e9}
"""Assumed bytes a second that one rank gathers, by device."""


def choose_engine(
    model_bytes: int,
    layer_bytes: int,
    zero3: bool,
    world_size: int,
    available: int,
    batches: int,
    device: str,
    begun: Engine | None = None,
) -> tuple[Engine, str]:
    """The faster engine of those that fit, and the reason in words.

    model_bytes, layer_bytes: of the whole network and of its largest layer; available: bytes a rank;
    batches: forward passes over all ranks; device: `cpu` or `cuda`; begun: the engine whose results of an
    unfinished pass are kept, which goes on where it can.
    """
    partitioned = zero3 and world_size > 1
    held = model_bytes // world_size + 2 * layer_bytes if partitioned else model_bytes
    if held * RESERVE > available:
        return "stream", (
            f"{held * RESERVE / GIB:.1f} GiB a rank for the network do not fit in {available / GIB:.1f} GiB"
        )
    if begun is not None:
        return begun, "it goes on with what it began"
    if not partitioned:
        return "zero3", f"the network fits in memory ({held / GIB:.1f} GiB a rank)"
    gathering = math.ceil(batches / world_size) * model_bytes / LINK_RATES[device]
    reading = model_bytes / DISK_RATE
    if gathering > reading:
        return "stream", f"gathering would take about {gathering:.0f} s, reading the files {reading:.0f} s"
    return "zero3", f"reading the files would take about {reading:.0f} s, gathering {gathering:.0f} s"
