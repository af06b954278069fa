"""What a study saves against its variants one by one, each in a process and a folder of its own, uncached.

    python benchmarks/study_speed.py --study runs/study_demo --out runs/one_by_one

Runs one seed of each variant (or of those named) as a study of that one cell: its own data (as many questions
as a seed takes), embeddings, frozen pass and base evaluation, `train.prefix_cache=off`. Counts processor
seconds, which a busy machine changes little, beside seconds by the clock. A variant that is not run is taken
to cost the mean of what the others cost beyond their cell, on top of its own. What is there is not run again.
Writes `study_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roma_ds.storage.atomic import read_json, write_json, write_text


def one_by_one(variant: str, settings: list[str], folder: Path) -> dict[str, float]:
    """Seconds by the clock and of the processor of one variant and seed on its own."""
    from roma_ds.demo import project

    project.write_study_project(folder / "project")
    kept = (folder / "project" / "train.jsonl").read_text().splitlines(keepends=True)
    write_text(folder / "project" / "train.jsonl", "".join(kept[: project.STUDY_TRAINING_ROWS]))
    study = {
        "run": "project/run.yaml",
        "set": ["train.prefix_cache=off"],
        "variants": [{"variant": variant, "set": settings}],
        "seeds": [0],
        "select": {"tasks": ["validation"]},
        "report": ["test"],
        "text": "project/plain.txt",
        "output_dir": "study",
    }
    write_text(folder / "study.yaml", json.dumps(study))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "roma_ds.study.worker", "--study", str(folder / "study.yaml")]
    subprocess.run(command, check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
    }


def measured(name: str, entry: Mapping[str, Any], settings: list[str], out: Path) -> dict[str, float]:
    """The same, from the file of an earlier call where there is one."""
    path = out / f"{name}.json"
    if not path.exists():
        write_json(path, one_by_one(entry["variant"], settings, out / name))
    found: dict[str, float] = read_json(path)
    return found


def compared(
    alone: Mapping[str, Mapping[str, float]],
    entries: Mapping[str, Mapping[str, Any]],
    together: Mapping[str, float],
) -> dict[str, Any]:
    """By unit, all cells one by one against the study; `together`: what the study took in all, by unit."""
    found: dict[str, Any] = {}
    for unit in ("processor_seconds", "seconds"):
        cell = {name: float(row["cost"][unit]) for name, row in entries.items()}
        runs = {name: len(row["by_seed"]) for name, row in entries.items()}
        beyond = {name: one[unit] - cell[name] for name, one in alone.items()}
        usual = statistics.fmean(beyond.values())
        total = sum(runs[name] * (cell[name] + beyond.get(name, usual)) for name in entries)
        found[unit] = {
            "variants": {
                name: {
                    "cells": runs[name],
                    "cell": round(cell[name], 2),
                    "alone": alone[name][unit] if name in alone else None,
                    "ratio": round(alone[name][unit] / cell[name], 2) if name in alone else None,
                }
                for name in entries
            },
            "one_by_one": round(total, 1),
            "study": round(together[unit], 1),
            "ratio": round(total / together[unit], 2),
        }
    return found


def main() -> None:
    """Measure, extend to all variants and seeds, write."""
    from roma_ds.cli.launching import launcher_environment
    from roma_ds.study.results import read_results

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="the demo study, run by one command")
    parser.add_argument("--set", nargs="*", default=["train.epochs=2", "train.lr=0.02"], help="its `set`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=None, help="those that are run; all of them")
    arguments = parser.parse_args()
    os.environ.update(launcher_environment())
    out = arguments.out.resolve()
    entries: dict[str, dict[str, Any]] = read_results(arguments.study)["entries"]
    alone = {}
    for name in arguments.variants or entries:
        settings = [*arguments.set, *entries[name]["settings"]]
        alone[name] = measured(name, entries[name], settings, out)
        print(json.dumps({name: alone[name]}), flush=True)
    launch = read_json(arguments.study / "cells.json")
    together = {unit: launch[f"{unit}_of_this_launch"] for unit in ("seconds", "processor_seconds")}
    result = compared(alone, entries, together)
    write_json(out / "study_speed.json", result)
    for unit, part in result.items():
        print(f"{unit}: {part['one_by_one']} one by one, {part['study']} as a study, {part['ratio']} times")


if __name__ == "__main__":
    main()
