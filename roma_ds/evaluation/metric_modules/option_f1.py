"""F1 over the places of options, as a module of the library `evaluate`."""

from __future__ import annotations

from typing import Any

import evaluate
from sklearn.metrics import f1_score

from roma_ds.evaluation.metric_modules.info import option_info


class OptionF1(evaluate.Metric):
    """`evaluate.load(PATH_OF_THIS_FILE).compute(predictions=[...], references=[...])`."""

    def _info(self) -> Any:
        return option_info(
            "Macro F1: the mean, over the options that are right somewhere, of the harmonic mean of "
            "precision and recall. A model that always gives one option scores far below its accuracy.",
            "f1: between 0 and 1.",
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        labels = sorted(set(references))
        score = f1_score(references, predictions, labels=labels, average="macro", zero_division=0.0)
        return {"f1": float(score)}
