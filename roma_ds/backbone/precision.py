"""The dtype in which sums over many products are kept."""

from __future__ import annotations

import torch


def sums_dtype(values: torch.Tensor) -> torch.dtype:
    """float32, or the dtype of `values` where that is wider."""
    return torch.promote_types(values.dtype, torch.float32)
