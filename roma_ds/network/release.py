"""Give back the memory of a network that is no longer needed."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGE = 4 << 20
KEPT = 256 << 20
"""Free memory at the end of the heap that stays there between steps."""


def release(network: Any) -> None:
    """Empty all tensors of a network now, also the share of them that ZeRO-3 left on this rank.

    A network with hooks refers to itself and would wait for the collector, and DeepSpeed keeps its engines.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        for held in (tensor, getattr(tensor, "ds_tensor", None)):
            if held is not None:
                held.data = torch.empty(0, dtype=held.dtype, device=held.device)


def keep_large_blocks_apart() -> None:
    """Let glibc give every block of LARGE bytes pages of its own, which go back when it is freed.

    Otherwise its limit rises to 32 MiB, and weights below it that ZeRO-3 gathers and frees in every step on
    a CPU leave holes in the heap: half as much memory again in a few steps. With a limit of its own glibc no
    longer adapts when it shrinks the heap either, and would give back and fetch pages in every step.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
    except (OSError, AttributeError):
        return


def leave_libraries_alone() -> None:
    """Let Python's collector pass over what is in memory now: half a million objects of imported libraries.

    They are never garbage, and to walk through them takes half a second whenever a network is given back.
    """
    gc.collect()
    gc.freeze()


def return_freed_memory() -> None:
    """Collect what nothing refers to and return free pages to the system, which glibc otherwise keeps."""
    gc.collect()
    return_free_pages()


def return_free_pages() -> None:
    """Return pages to the system that glibc has free; some milliseconds.

    Where large values that live shortly take turns with small ones that stay, holes between these add up to
    hundreds of megabytes.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
