"""Share of questions whose predicted option is the right one, as a module of the library `evaluate`."""

from __future__ import annotations

from typing import Any

import evaluate
import numpy as np

from roma_ds.evaluation.metric_modules.info import option_info


class OptionAccuracy(evaluate.Metric):
    """`evaluate.load(PATH_OF_THIS_FILE).compute(predictions=[...], references=[...])`."""

    def _info(self) -> Any:
        return option_info(
            "Share of questions whose predicted option is the right one, and its standard error.",
            "accuracy: between 0 and 1; stderr: sqrt(p (1 - p) / (n - 1)), 0 for a single question.",
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        right = np.asarray(predictions) == np.asarray(references)
        error = float(right.std(ddof=1) / np.sqrt(right.size)) if right.size > 1 else 0.0
        return {"accuracy": float(right.mean()), "stderr": error}
