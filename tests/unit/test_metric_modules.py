"""Our metrics are modules of the library `evaluate` that load without a hub."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, f1_score

from roma_ds.evaluation.metric_modules import NAMES, compute, module_path
from roma_ds.evaluation.uncertainty import stderr


def answers(count: int) -> tuple[list[int], list[int]]:
    source = random.Random(count)
    references = [source.randrange(4) for _ in range(count)]
    return [source.choice([-1, place, 1]) for place in references], references


@pytest.mark.parametrize("count", [1, 2, 37])
def test_values_are_those_of_scikit_learn(count: int) -> None:
    predictions, references = answers(count)
    found = compute("option_accuracy", predictions, references)
    right = [one == other for one, other in zip(predictions, references, strict=True)]
    assert found["accuracy"] == accuracy_score(references, predictions)
    assert found["stderr"] == pytest.approx(stderr(right))
    labels = sorted(set(references))
    wanted = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    assert compute("option_f1", predictions, references)["f1"] == pytest.approx(wanted)


def test_one_option_for_all_has_a_low_f1() -> None:
    references = [0, 1, 2, 3] * 5 + [0] * 5
    assert compute("option_accuracy", [0] * 25, references)["accuracy"] == 0.4
    assert compute("option_f1", [0] * 25, references)["f1"] == pytest.approx(2 * 0.4 / 1.4 / 4)


def test_evaluate_loads_the_files_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    predictions, references = answers(12)
    for name in NAMES:
        metric = evaluate.load(module_path(name), cache_dir=str(tmp_path / "cache"))
        importlib.invalidate_caches()
        found = metric.compute(predictions=predictions, references=references)
        assert found == pytest.approx(compute(name, predictions, references))
