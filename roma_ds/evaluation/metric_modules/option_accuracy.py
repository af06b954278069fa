"""Share of questions whose predicted option is the right one, as a module of the library `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = (
    "Share of questions whose predicted option is the right one, and the standard error of that share."
)
INPUTS = """
Args:
    predictions: numbers of the predicted options; -1 where no option was given.
    references: numbers of the right options.
Returns:
    accuracy: between 0 and 1.
    stderr: sqrt(p (1 - p) / (n - 1)), 0 for a single question.
"""


class OptionAccuracy(evaluate.Metric):
    """`evaluate.load(PATH_OF_THIS_FILE).compute(predictions=[...], references=[...])`."""

    def _info(self) -> Any:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        right = np.asarray(predictions) == np.asarray(references)
        error = float(right.std(ddof=1) / np.sqrt(right.size)) if right.size > 1 else 0.0
        return {"accuracy": float(right.mean()), "stderr": error}
