"""Give back the memory of a network that is no longer needed."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch


def release(network: Any) -> None:
    """Empty all tensors of a network now, also the share of them that ZeRO-3 left on this rank.

    A network with hooks refers to itself and would wait for the collector, and DeepSpeed keeps its engines.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        for held in (tensor, getattr(tensor, "ds_tensor", None)):
            if held is not None:
                held.data = torch.empty(0, dtype=held.dtype, device=held.device)


def return_freed_memory() -> None:
    """Collect what nothing refers to and return free pages to the system, which glibc otherwise keeps."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
