"""Tell a collective that broke because another rank is gone from an error of this rank's own."""

from __future__ import annotations

import torch.distributed as dist

_SIGNS = (
    "remote worker crashing",
    "connection closed by peer",
    "connection reset by peer",
    "remote process exited",
)


def lost_another_rank(error: Exception) -> bool:
    """Whether `error` only says that another rank ended: gloo raises RuntimeError, NCCL DistError."""
    text = str(error).lower()
    return isinstance(error, RuntimeError | dist.DistError) and any(sign in text for sign in _SIGNS)
