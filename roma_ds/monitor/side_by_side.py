"""Several runs in one table: what was set differently, and what came out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.monitor.console import align
from roma_ds.monitor.hyperparameters import flat
from roma_ds.monitor.run_folder import Run, read_run
from roma_ds.monitor.wording import byte_size, count, duration, in_order, percent, variant_title

TASKS_SHOWN = 12
WITHOUT_EFFECT = ("output_dir",)
Rows = dict[str, list[str]]


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Settings in which the runs in `folders` differ, and their results, each a list in that order.

    Raises UserError where one of them is no run.
    """
    runs = [_run(folder) for folder in folders]
    settings = [flat({key: v for key, v in run.config.items() if key not in WITHOUT_EFFECT}) for run in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    found = {key: [values.get(key) for values in settings] for key in keys}
    differing = {key: values for key, values in found.items() if len(set(map(repr, values))) > 1}
    names = in_order(list(dict.fromkeys(name for run in runs for name in run.variants)))
    return {
        "runs": [str(folder) for folder in folders],
        "settings": differing,
        "variants": {name: [_result(run, name) for run in runs] for name in names},
        "training": {key: [_facts(run)[key] for run in runs] for key in _facts(runs[0])},
        "notes": [f"{run.folder}: {note}" for run in runs for note in run.notes],
    }


def comparison_table(compared: Mapping[str, Any]) -> str:
    """What `compare_runs` found, aligned; accuracies in percent."""
    rows = [["", *_short(compared["runs"])]]
    for key, values in compared["settings"].items():
        rows.append([key, *("–" if value is None else str(value) for value in values)])
    for name, results in compared["variants"].items():
        averages = [None if result is None else result["average"] for result in results]
        rows.append([f"{variant_title(name)}, average", *(percent(value) for value in averages)])
        tasks = dict.fromkeys(task for result in results if result for task in result["tasks"])
        for task in tasks if 1 < len(tasks) <= TASKS_SHOWN else ():
            entries = [result["tasks"].get(task) if result else None for result in results]
            rows.append([f"  {task}", *(_accuracy(entry) for entry in entries)])
    words = {"seconds": duration, "peak_memory_bytes": byte_size, "last_loss": _loss}
    for key, values in compared["training"].items():
        if any(value is not None for value in values):
            rows.append([f"training, {key.replace('_', ' ')}", *(words.get(key, count)(v) for v in values)])
    return "\n".join([align(rows), *(f"note: {note}" for note in compared["notes"])])


def _run(folder: Path) -> Run:
    if not (folder / "config.resolved.yaml").exists():
        raise UserError(f"{folder} is no folder of a run", "give the output_dir of runs; `roma-ds ls runs`")
    return read_run(folder)


def _result(run: Run, name: str) -> dict[str, Any] | None:
    variant = run.variants.get(name)
    if variant is None:
        return None
    keys = ("n", "accuracy", "stderr")
    tasks = {task: {key: entry.get(key) for key in keys} for task, entry in variant.result["tasks"].items()}
    return {"average": variant.result.get("average"), "tasks": tasks}


def _facts(run: Run) -> dict[str, Any]:
    record, lines = run.extra("train"), run.metrics.get("roma") or [{}]
    return {
        "steps": lines[-1].get("step"),
        "ranks": record.get("world_size") or run.environment.get("world_size"),
        "zero_stage": record.get("zero_stage"),
        "last_loss": lines[-1].get("loss"),
        "seconds": run.seconds("train"),
        "tokens_per_second": record.get("tokens_per_second"),
        "peak_memory_bytes": record.get("peak_memory_bytes"),
    }


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _accuracy(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    error = entry.get("stderr")
    return percent(entry.get("accuracy")) + ("" if error is None else f" ±{100 * error:.1f}")


def _short(folders: Sequence[str]) -> list[str]:
    """Names without what all of them begin with."""
    paths = [os.path.abspath(folder) for folder in folders]
    common = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
    return [os.path.relpath(path, common) for path in paths]
