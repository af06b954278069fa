"""Task results from scored samples: accuracy, its error, what was predicted, and the majority baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from roma_ds.backbone.scores import Scores
from roma_ds.data.sample import Sample
from roma_ds.evaluation.uncertainty import stderr

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def option_name(place: int) -> str:
    """Label of an option by its place: A, B, ...; `text` for free-text answers (place -1)."""
    return LETTERS[place] if place >= 0 else "text"


def normalised_right(scores: Scores, samples: Sequence[Sample], rows: Sequence[int]) -> list[bool]:
    """Whether the option of largest log-likelihood per UTF-8 byte of its text is the answer (acc_norm)."""
    right = []
    for row in rows:
        lengths = np.array([len(choice.encode()) for choice in samples[row].choices], np.float64)
        right.append(int((scores.option_loglikelihoods[row] / lengths).argmax()) == samples[row].answer)
    return right


def task_results(samples: Sequence[Sample], scores: Scores, scoring: str) -> dict[str, dict[str, Any]]:
    """Per task: n, accuracy, accuracy_norm, stderr, histogram of predicted options, majority baseline.

    accuracy_norm is None where options are letters or the answer is free text. The majority baseline is
    the accuracy of always giving the most frequent answer.
    """
    results = {}
    for task in dict.fromkeys(sample.task for sample in samples):
        rows = [row for row, sample in enumerate(samples) if sample.task == task]
        right = scores.correct[rows]
        answers = Counter(
            samples[row].answer if samples[row].options else samples[row].target for row in rows
        )
        cloze = scoring == "cloze" and all(samples[row].options for row in rows)
        predicted = Counter(option_name(int(scores.predicted[row])) for row in rows)
        results[task] = {
            "n": len(rows),
            "accuracy": float(right.mean()),
            "accuracy_norm": float(np.mean(normalised_right(scores, samples, rows))) if cloze else None,
            "stderr": stderr(right),
            "predicted": dict(sorted(predicted.items())),
            "majority_baseline": max(answers.values()) / len(rows),
        }
    return results


def average(results: dict[str, dict[str, Any]]) -> float:
    """Mean accuracy over tasks, each task counting the same."""
    return float(np.mean([result["accuracy"] for result in results.values()]))
