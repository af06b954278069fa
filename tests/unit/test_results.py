from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from roma_ds.data.sample import Sample
from roma_ds.evaluation.results import average, task_results
from roma_ds.sequences.scores import Scores

LETTERS = (" A", " B", " C", " D")


def question(
    answer: int, task: str = "t", choices: tuple[str, ...] = ("a", "b", "c", "d"), cloze: bool = False
) -> Sample:
    options = tuple(f" {choice}" for choice in choices) if cloze else LETTERS[: len(choices)]
    return Sample("id", task, "test", "p", "q", choices, answer, options[answer], options)


def free(target: str, task: str = "f") -> Sample:
    return Sample("id", task, "test", "p", "q", (), -1, f" {target}", ())


def scored(samples: list[Sample], likelihoods: list[list[float]], right: list[bool] | None = None) -> Scores:
    values = [np.array(row, np.float32) for row in likelihoods]
    predicted = [int(row.argmax()) if len(row) else -1 for row in values]
    answers = [sample.answer for sample in samples]
    correct = right or [a == b for a, b in zip(predicted, answers, strict=True)]
    zeros = np.zeros(len(samples), np.float32)
    routing = np.zeros((len(samples), 1, 2), np.float16)
    return Scores(values, zeros, zeros, np.array(predicted), np.array(correct), zeros, routing, 0)


def result(samples: list[Sample], likelihoods: list[list[float]], scoring: str = "letter") -> dict[str, Any]:
    (found,) = task_results(samples, scored(samples, likelihoods), scoring).values()
    return found


def prefer(option: int, options: int = 4) -> list[float]:
    return [-1.0 if place == option else -5.0 for place in range(options)]


def test_a_model_that_always_says_a_is_seen_in_the_histogram() -> None:
    samples = [question(answer) for answer in (0, 1, 2, 3, 3, 3, 1, 0)]
    found = result(samples, [prefer(0)] * 8)
    assert found["predicted"] == {"A": 8}
    assert found["accuracy"] == 2 / 8
    assert found["majority_baseline"] == 3 / 8
    assert found["n"] == 8
    assert found["accuracy_norm"] is None
    assert found["stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 8), rel=0.1)


def test_the_histogram_is_sorted_and_counts_every_sample() -> None:
    samples = [question(0) for _ in range(6)]
    found = result(samples, [prefer(option) for option in (3, 1, 1, 0, 3, 3)])
    assert list(found["predicted"].items()) == [("A", 1), ("B", 2), ("D", 3)]


def test_the_majority_baseline_of_free_text_is_the_most_frequent_answer() -> None:
    samples = [free(target) for target in ("72", "18", "72", "5")]
    (found,) = task_results(samples, scored(samples, [[]] * 4, [True, False, True, False]), "cloze").values()
    assert found["majority_baseline"] == 0.5
    assert found["predicted"] == {"text": 4}
    assert found["accuracy"] == 0.5
    assert found["accuracy_norm"] is None


def test_accuracy_norm_divides_by_the_characters_of_the_choice() -> None:
    """Of "é" (two bytes) and "abc" (three): -3 / 1 < -4 / 3, though -3 > -4."""
    sample = question(1, choices=("é", "abc"), cloze=True)
    found = result([sample], [[-3.0, -4.0]], "cloze")
    assert found["accuracy"] == 0.0
    assert found["accuracy_norm"] == 1.0
    # By bytes, -3 / 2 > -5 / 3 would make it wrong; by characters -3 / 1 < -5 / 3.
    assert result([sample], [[-3.0, -5.0]], "cloze")["accuracy_norm"] == 1.0
    assert result([sample], [[-3.0, -9.5]], "cloze")["accuracy_norm"] == 0.0


def test_accuracy_norm_needs_cloze_scoring() -> None:
    samples = [question(1, choices=("x", "yyyy"), cloze=True)]
    assert result(samples, [[-1.0, -2.0]], "letter")["accuracy_norm"] is None
    assert result(samples, [[-1.0, -2.0]], "cloze")["accuracy_norm"] == 1.0


def test_tasks_are_apart_in_their_order_and_weigh_the_same() -> None:
    samples = [question(0, "b"), question(0, "a"), question(0, "b"), question(0, "b")]
    found = task_results(samples, scored(samples, [prefer(0), prefer(1), prefer(0), prefer(1)]), "letter")
    assert list(found) == ["b", "a"]
    assert (found["b"]["n"], found["a"]["n"]) == (3, 1)
    assert (found["b"]["accuracy"], found["a"]["accuracy"]) == (2 / 3, 0.0)
    assert average(found) == pytest.approx(1 / 3)


def test_the_share_of_c() -> None:
    answers = [0, 1, 2, 2, 3, 2, 1, 0, 2, 3]
    samples = [question(answer) for answer in answers]
    found = result(samples, [prefer(2)] * 10)
    assert found["accuracy"] == answers.count(2) / 10
    assert found["predicted"] == {"C": 10}
