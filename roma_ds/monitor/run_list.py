"""The runs under a folder, each in a line: how far it is, and what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roma_ds.errors import UserError
from roma_ds.monitor.console import align
from roma_ds.monitor.metrics_log import read_metrics
from roma_ds.monitor.wording import in_order, percent, variant_title
from roma_ds.storage.atomic import read_json
from roma_ds.storage.run_lock import holder_of

STAGES = ("data", "embed", "collect", "index", "train", "eval", "export", "report")


def run_lines(under: Path) -> Iterator[str]:
    """A table of the runs in `under`, by folder: state, model, step, and the average of each variant."""
    folders = sorted(file.parent for file in under.rglob("config.resolved.yaml")) if under.is_dir() else []
    if not folders:
        yield f"no runs under {under}"
        return
    results = {folder: _averages(folder) for folder in folders}
    names = in_order(list(dict.fromkeys(name for averages in results.values() for name in averages)))
    rows = [["run", "state", "step", *(variant_title(name) for name in names)]]
    for folder, averages in results.items():
        cells = [percent(averages.get(name)) for name in names]
        rows.append([str(folder), _state(folder), _step(folder), *cells])
    yield from align(rows).splitlines()


def _state(folder: Path) -> str:
    holder = holder_of(folder)
    done = [name for name in STAGES if (folder / name / "stage.json").exists()]
    at = next((name for name in STAGES if name not in done and name != "eval"), "eval")
    if holder is not None:
        return f"running on {holder['host']}, {at}"
    return "finished" if "report" in done else f"stopped before the end of {at}"


def _step(folder: Path) -> str:
    try:
        lines = read_metrics(folder / "train" / "metrics.jsonl")
    except UserError:
        return "–"
    return str(lines[-1].get("step", "–")) if lines else "–"


def _averages(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for file in sorted((folder / "eval").glob("*.json")):
        if file.name.endswith("stage.json"):
            continue
        try:
            content: Mapping[str, Any] = read_json(file)
            found[file.stem] = float(content["average"])
        except (UserError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return found
