"""What a model that has its routers in its checkpoint's types answers, beside what was measured of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from roma_ds.evaluation.results import AS_SERVED
from roma_ds.monitor.run_folder import Variant
from roma_ds.monitor.wording import percent, variant_title


def served_cautions(variants: Mapping[str, Variant], survival: Mapping[str, Any] | None) -> list[str]:
    """One where the two accuracies of RoMA differ by more than the standard error of the larger one.

    survival: what training recorded of the update in the stored types, see `checkpoint.stored_gates`.
    """
    if not {"roma", AS_SERVED} <= variants.keys():
        return []
    exact, served = (variants[name].result for name in ("roma", AS_SERVED))
    if None in (exact.get("average"), served.get("average")):
        return []
    error = standard_error(max((exact, served), key=lambda result: float(result["average"])))
    if abs(exact["average"] - served["average"]) <= error:
        return []
    left = f", which leave {percent(survival['kept'])}% of the update" if survival else ""
    return [
        f"{variant_title(AS_SERVED)} answers {percent(served['average'])}% on average, "
        f"{percent(exact['average'])}% with routers in float32: more than the standard error of "
        f"{percent(error)} points apart. What differs is the rounding of routers to the types of the "
        f"checkpoint{left}. train.gate_dtype=as_stored trains through it."
    ]


def standard_error(result: Mapping[str, Any]) -> float:
    """Of an average over tasks, each asked questions of its own; a share."""
    errors = [float(task["stderr"]) for task in result["tasks"].values() if task.get("stderr") is not None]
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else 0.0
