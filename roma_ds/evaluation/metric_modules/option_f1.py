"""F1 over the places of options, as a module of the library `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from sklearn.metrics import f1_score

DESCRIPTION = (
    "Macro F1: the mean, over the options that are right somewhere, of the harmonic mean of precision and "
    "recall. A model that always gives one option scores far below its accuracy."
)
INPUTS = """
Args:
    predictions: numbers of the predicted options; -1 where no option was given.
    references: numbers of the right options.
Returns:
    f1: between 0 and 1.
"""


class OptionF1(evaluate.Metric):
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
        labels = sorted(set(references))
        score = f1_score(references, predictions, labels=labels, average="macro", zero_division=0.0)
        return {"f1": float(score)}
