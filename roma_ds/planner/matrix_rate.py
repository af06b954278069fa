"""How fast this machine multiplies matrices, by doing it for a moment."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from typing import Any


def matrix_rate(
    dtype: str,
    size: int = 1024,
    seconds: float = 1.0,
    device: str = "cpu",
    product: Callable[[Any, Any], Any] = operator.matmul,
) -> dict[str, float]:
    """Floating-point operations a second of square matrix products in one process: best and median of many.

    dtype: a torch name. size: rows and columns. device: where torch puts them. product: of two of them.
    """
    import torch

    kind = getattr(torch, dtype)
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    taken: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(taken) < 2:
        begun = time.perf_counter()
        product(left, right)
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    operations = 2.0 * size**3
    return {"best": operations / min(taken), "median": operations / statistics.median(taken)}
