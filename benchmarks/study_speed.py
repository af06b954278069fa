"""What a study saves against its variants one by one, each by a command and in a folder of its own, uncached.

    python benchmarks/study_speed.py --ranks 2 --out runs/study_speed

Runs the packaged demo study by `roma-ds study` into `OUT/study`, then each of its variants with one seed as a
study of that one cell: its own data (as many questions as a seed takes), embeddings, frozen pass and base
evaluation, `train.prefix_cache=off`. Both are timed as whole commands, by the clock and in processor seconds,
on the same number of ranks and with the same settings of the run (`--set`). A variant's time is taken for
each of its seeds. What is there is not run again, but a study that was begun and not finished here is begun
anew. Writes `study_speed.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import write_result

from roma_ds.storage.atomic import read_json, write_json, write_text

STUDY = "study_demo"


def timed(study: Path, ranks: int) -> dict[str, float]:
    """Seconds by the clock and of the processor of `roma-ds study`; what it prints goes to log.txt."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    program = "import sys; from roma_ds.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "study", study.name, "--ranks", str(ranks)]
    with open(study.parent / "log.txt", "wb") as log:
        subprocess.run(command, check=True, cwd=study.parent, stdout=log, stderr=subprocess.STDOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }


def packaged(settings: Sequence[str]) -> dict[str, Any]:
    """The packaged study with some more settings for all its runs."""
    import yaml

    from roma_ds.config.packaged import study_text

    study: dict[str, Any] = yaml.safe_load(study_text(STUDY))
    return {**study, "set": [*study["set"], *settings]}


def together(study: Mapping[str, Any], out: Path, ranks: int) -> dict[str, float]:
    """The whole study by one command."""
    path = out / "study.json"
    if not path.exists():
        shutil.rmtree(out / "study", ignore_errors=True)
        write_text(out / "study" / f"{STUDY}.yaml", json.dumps(study))
        write_json(path, timed(out / "study" / f"{STUDY}.yaml", ranks))
    found: dict[str, float] = read_json(path)
    return found


def alone(
    name: str, entry: Mapping[str, Any], settings: Sequence[str], out: Path, ranks: int
) -> dict[str, float]:
    """One seed of one variant on its own."""
    from roma_ds.demo import project

    path = out / f"{name}.json"
    if not path.exists():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        project.write_study_project(folder / "project")
        kept = (folder / "project" / "train.jsonl").read_text().splitlines(keepends=True)
        write_text(folder / "project" / "train.jsonl", "".join(kept[: project.STUDY_TRAINING_ROWS]))
        study = {
            "run": "project/run.yaml",
            "set": ["train.prefix_cache=off"],
            "variants": [{"variant": entry["variant"], "set": [*settings, *entry["settings"]]}],
            "seeds": [0],
            "select": {"tasks": ["validation"]},
            "report": ["test"],
            "text": "project/plain.txt",
            "output_dir": "study",
        }
        write_text(folder / "study.yaml", json.dumps(study))
        write_json(path, timed(folder / "study.yaml", ranks))
    found: dict[str, float] = read_json(path)
    return found


def compared(
    one_by_one: Mapping[str, Mapping[str, float]],
    entries: Mapping[str, Mapping[str, Any]],
    study: Mapping[str, float],
) -> dict[str, Any]:
    """By unit, all variants with all seeds one by one against the study."""
    cells = {name: len(row["by_seed"]) for name, row in entries.items()}
    found: dict[str, Any] = {"cells": sum(cells.values())}
    for unit in ("seconds", "processor_seconds"):
        total = sum(cells[name] * one_by_one[name][unit] for name in entries)
        found[unit] = {
            "one_by_one": round(total, 1),
            "study": study[unit],
            "ratio": round(total / study[unit], 2),
            "each": {
                name: {
                    "cells": cells[name],
                    "alone": one_by_one[name][unit],
                    "as_a_cell": round(float(row["cost"][unit]), 2),
                }
                for name, row in entries.items()
            },
        }
    return found


def main() -> None:
    """Measure and write."""
    from roma_ds.study.results import read_results

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], help="settings of all runs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out, ranks = arguments.out.resolve(), arguments.ranks
    study = packaged(arguments.set)
    took = together(study, out, ranks)
    print(json.dumps({"study": took}), flush=True)
    entries = read_results(out / "study" / "runs" / STUDY)["entries"]
    one_by_one = {}
    for name, entry in entries.items():
        one_by_one[name] = alone(name, entry, study["set"], out / "alone", ranks)
        print(json.dumps({name: one_by_one[name]}), flush=True)
    result = {"ranks": ranks, "settings": arguments.set, **compared(one_by_one, entries, took)}
    write_result(out, "study_speed", result)
    for unit in ("seconds", "processor_seconds"):
        part = result[unit]
        print(f"{unit}: {part['one_by_one']} one by one, {part['study']} as a study, {part['ratio']} times")


if __name__ == "__main__":
    main()
