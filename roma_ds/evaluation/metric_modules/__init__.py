"""Metrics as modules of the library `evaluate`, in files of their own that it loads without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("option_accuracy", "option_f1")


def module_path(name: str) -> str:
    """The file of a metric in NAMES, for `evaluate.load`."""
    return str(HERE / f"{name}.py")


def compute(name: str, predictions: list[int], references: list[int]) -> dict[str, float]:
    """What a metric in NAMES gives; nothing is read from a hub or written to disk."""
    from roma_ds.evaluation.metric_modules.option_accuracy import OptionAccuracy
    from roma_ds.evaluation.metric_modules.option_f1 import OptionF1

    metric: Any = {"option_accuracy": OptionAccuracy, "option_f1": OptionF1}[name](keep_in_memory=True)
    found: dict[str, float] = metric.compute(predictions=predictions, references=references)
    return found
