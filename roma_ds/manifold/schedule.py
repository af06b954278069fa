"""The course of lambda (equation 9, with its linear warm-up)."""

from __future__ import annotations


def lambda_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """lambda for optimizer step `step` (from 0) of `steps`.

    Rises linearly over the first `warmup` share of the run and is above 0 from the first step on, so
    that a warm-up can never outlast a run.
    """
    rising = round(warmup * steps)
    return peak * min(1.0, (step + 1) / (rising + 1)) if rising else peak
