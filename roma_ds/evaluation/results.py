"""Task results from scored samples: accuracy, its error, what was predicted, and the majority baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roma_ds.data.sample import Sample
from roma_ds.data.tasks import TASKS
from roma_ds.evaluation.metric_modules import compute
from roma_ds.sequences.scores import Scores

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AS_SERVED = "roma_as_served"
"""RoMA's routers as a model has them whose gates are in the types of its checkpoint: a variant that is
evaluated where these are other values than those of `roma` itself."""


def option_name(place: int, among: Sequence[str] = ()) -> str:
    """Label of an option by its place: A, B, ...; for -1 `none` among options and `text` without any."""
    if place >= 0:
        return LETTERS[place]
    return "none" if among else "text"


def normalised_right(scores: Scores, samples: Sequence[Sample], rows: Sequence[int]) -> list[bool]:
    """Whether the option of largest log-likelihood per character of its text is the answer.

    lm-evaluation-harness' acc_norm: the space between prompt and option does not count.
    """
    right = []
    for row in rows:
        lengths = np.array([len(choice) for choice in samples[row].choices], np.float64)
        right.append(int((scores.option_loglikelihoods[row] / lengths).argmax()) == samples[row].answer)
    return right


def task_results(
    samples: Sequence[Sample], scores: Scores, scoring: str | Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Per task: n, split, accuracy, accuracy_norm, stderr, f1, predicted options, majority baseline.

    scoring: of all tasks, or by task.
    accuracy_norm is None but in cloze scoring of tasks that have it, f1 (macro, over options) where answers
    are free text. The majority baseline is the accuracy of always giving the most frequent answer.
    """
    results = {}
    for task in dict.fromkeys(sample.task for sample in samples):
        rows = [row for row, sample in enumerate(samples) if sample.task == task]
        own = [samples[row] for row in rows]
        answers = Counter(sample.answer if sample.options else sample.target for sample in own)
        optional = all(sample.options for sample in own)
        cloze = (scoring if isinstance(scoring, str) else scoring[task]) == "cloze"
        normed = cloze and optional and _has_norm(task) and not any(one.contexts for one in own)
        given = [option_name(int(scores.predicted[row]), samples[row].options) for row in rows]
        # Of free text there is no number to predict: 1 where it is right.
        predictions = [int(scores.predicted[row] if optional else scores.correct[row]) for row in rows]
        references = [sample.answer if optional else 1 for sample in own]
        found = compute("option_accuracy", predictions, references)
        results[task] = {
            "n": len(rows),
            "split": own[0].split,
            "accuracy": found["accuracy"],
            "accuracy_norm": float(np.mean(normalised_right(scores, samples, rows))) if normed else None,
            "stderr": found["stderr"],
            "f1": compute("option_f1", predictions, references)["f1"] if optional else None,
            "predicted": dict(sorted(Counter(given).items())),
            "majority_baseline": max(answers.values()) / len(rows),
        }
    return results


def _has_norm(task: str) -> bool:
    return task not in TASKS or "acc_norm" in TASKS[task].metrics


def unread_shares(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """By task whose answers are generated: the share of them in which no answer was found."""
    return {task: result["unread"] for task, result in results.items() if "unread" in result}


def average(results: dict[str, dict[str, Any]]) -> float:
    """Mean accuracy over tasks, each task counting the same."""
    return float(np.mean([result["accuracy"] for result in results.values()]))
