"""What a study saves against its variants one by one, each in a process and a folder of its own, uncached.

    python benchmarks/study_speed.py --study runs/study_demo --out runs/one_by_one --variants base roma lora

Runs one seed of each variant named as a study of that one cell: its own data (the seed's questions alone),
embeddings, frozen pass and base evaluation, `train.prefix_cache=off`. Takes processor seconds, which a busy
machine changes little. For variants that are not run, the mean of what the others cost beyond their cell is
added to their own cell. Writes `study_speed.json`.
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
from pathlib import Path
from typing import Any

from roma_ds.storage.atomic import read_json, write_json, write_text


def one_by_one(variant: str, settings: list[str], out: Path) -> dict[str, float]:
    """Wall and processor seconds of one variant and seed on its own."""
    from roma_ds.demo import project

    folder = out / variant
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
        "seconds": time.monotonic() - started,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main() -> None:
    """Measure, extend to all variants, write."""
    from roma_ds.cli.launching import launcher_environment
    from roma_ds.study.results import read_results

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="a finished study on the demo suite")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--shared-processor-seconds", type=float, default=None)
    arguments = parser.parse_args()
    os.environ.update(launcher_environment())
    entries: dict[str, dict[str, Any]] = read_results(arguments.study)["entries"]
    cell = {name: float(row["cost"]["processor_seconds"]) for name, row in entries.items()}
    runs = {name: len(row["by_seed"]) for name, row in entries.items()}
    measured = {
        name: one_by_one(entries[name]["variant"], entries[name]["settings"], arguments.out.resolve())
        for name in arguments.variants
    }
    beyond = {name: found["processor_seconds"] - cell[name] for name, found in measured.items()}
    usual = statistics.fmean(beyond.values())
    alone = {name: runs[name] * (cell[name] + beyond.get(name, usual)) for name in entries}
    launch = read_json(arguments.study / "cells.json")["processor_seconds_of_this_launch"]
    together = arguments.shared_processor_seconds or launch
    result = {
        "unit": "processor seconds",
        "measured_one_by_one": measured,
        "cell_in_the_study": cell,
        "cells": runs,
        "beyond_the_cell": beyond,
        "one_by_one": alone,
        "one_by_one_total": sum(alone.values()),
        "study_total": together,
        "ratio": sum(alone.values()) / together,
    }
    write_json(arguments.out / "study_speed.json", result)
    print(json.dumps({key: result[key] for key in ("one_by_one_total", "study_total", "ratio")}))


if __name__ == "__main__":
    main()
