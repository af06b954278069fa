"""The shared memory of DeepSpeed's all-reduce on CPUs, 66 MiB a rank, which DeepSpeed itself leaves there."""

from __future__ import annotations

import glob
import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def forget_shared_buffers(address: str, port: str) -> None:
    """Unlink the buffers of this user's ranks on this host that meet at `address` and `port`.

    Once every rank has mapped them, the names serve nobody; left there, each run would take that memory for
    good. The names are those of DeepSpeed's shm.cpp.
    """
    start = glob.escape(f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_")
    for path in SHARED_MEMORY.glob(f"{start}*"):
        path.unlink(missing_ok=True)
