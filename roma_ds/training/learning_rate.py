"""The course of the learning rate."""

from __future__ import annotations

import math


def learning_rate_at(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`.

    Rises linearly over the first `warmup` share of the run, then follows `cosine` or `linear` towards 0,
    or stays `constant`.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (1.0 - done) if schedule == "linear" else peak
