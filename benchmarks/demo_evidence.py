"""Does RoMA beat its controls on the demo? Settings chosen on validation phrasings, measured on test ones.

    python benchmarks/demo_evidence.py --out runs/evidence

Every method gets its own search over the same number of settings or fewer; the choice looks at validation
phrasings and at seeds that the final comparison does not use. A seed decides which rows are trained on and in
which order. All methods of a seed share data, embeddings, collected routing and neighbours' index. Writes
`evidence.json` with every number, and `evidence.md`, the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.cli.launching import launcher_environment

METHODS = ("router_tuning", "random_neighbours", "roma")
TITLES = {
    "base": "base",
    "router_tuning": "router tuning (lambda 0)",
    "random_neighbours": "random neighbours",
    "roma": "RoMA",
}


def grid(method: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Settings that a method may choose from."""
    for lr, epochs in itertools.product(arguments.lr, arguments.epochs):
        setting = {"train.lr": lr, "train.epochs": epochs}
        if method == "router_tuning":
            yield setting
            continue
        for weight, sigma in itertools.product(arguments.weight, arguments.sigma):
            yield {**setting, "roma.lambda": weight, "roma.sigma": sigma}


class Seed:
    """One choice of training rows: a run folder whose stages up to the index every method shares."""

    def __init__(self, out: Path, seed: int, rows: int, world: Any) -> None:
        from roma_ds.config import load_run_config, resolve_deepspeed
        from roma_ds.demo.project import write_project
        from roma_ds.training.interruption import Interruption

        self.seed, self.world = seed, world
        folder = out / f"seed-{seed}"
        config = write_project(folder, seed, 0, training_rows=rows)
        self.overrides = [
            f"data.train.0.path={folder.resolve() / 'train.jsonl'}",
            "eval.tasks=[{name: validation, path: validation.jsonl}, {name: test, path: test.jsonl}]",
            "train.log_every=1000",
            "train.save_every=100000",
        ]
        self.config, self.load, self.resolve = config, load_run_config, resolve_deepspeed
        self.interruption = Interruption()

    def measure(self, method: str, setting: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Per task, bool [samples]: which are answered right by `method` trained with `setting`."""
        from roma_ds.pipeline import stages
        from roma_ds.pipeline.session import Session
        from roma_ds.storage.atomic import read_parquet

        values = [f"{key}={json.dumps(value)}" for key, value in setting.items()]
        run = self.load(self.config, [*self.overrides, *values])
        session = Session(self.world, run, self.resolve(run, 1), self.interruption)
        for stage in (stages.data_stage, stages.embed_stage, stages.collect_stage, stages.index_stage):
            stage(session)
        if method != "base":
            stages.train_stage(session, [method])
        stages.eval_stage(session, [method])
        rows = read_parquet(session.folders.stage("eval") / f"{method}.samples.parquet")
        tasks, right = np.array(rows["task"]), np.array(rows["correct"], bool)
        return {task: right[tasks == task] for task in ("validation", "test")}


def choose(
    seeds: Sequence[Seed], arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The setting of best mean validation accuracy for each method, and every trial."""
    chosen, trials = {}, []
    for method in arguments.methods:
        best = -1.0
        for setting in grid(method, arguments):
            scores = [float(seed.measure(method, setting)["validation"].mean()) for seed in seeds]
            trials.append({"method": method, "setting": setting, "validation": scores})
            print(f"select {method} {setting}: {100 * np.mean(scores):.2f}", flush=True)
            if np.mean(scores) > best:
                best, chosen[method] = float(np.mean(scores)), setting
    return chosen, trials


def compare(right: Mapping[str, Sequence[np.ndarray]], other: str) -> dict[str, Any]:
    """RoMA minus `other` on test, in points: t-interval and paired t-test over seeds."""
    from roma_ds.evaluation.uncertainty import paired_t

    mine = [100 * float(values.mean()) for values in right["roma"]]
    theirs = [100 * float(values.mean()) for values in right[other]]
    test = paired_t(mine, theirs)
    return {
        "difference": test.difference.estimate,
        "low": test.difference.low,
        "high": test.difference.high,
        "p": test.p_value,
        "seeds_won": sum(a > b for a, b in zip(mine, theirs, strict=True)),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    from roma_ds.evaluation.uncertainty import t_interval

    lines = [
        "| variant | test accuracy, mean | 95% interval | RoMA minus it | 95% interval | p | seeds won |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in result["test"]:
        values = [100 * value for value in result["test"][method]]
        spread = t_interval(values)
        cells = ["", "", "", ""]
        if method != "roma":
            found = result["compared"][method]
            cells = [
                f"{found['difference']:+.2f}",
                f"{found['low']:+.2f} to {found['high']:+.2f}",
                f"{found['p']:.4f}",
                f"{found['seeds_won']}/{len(values)}",
            ]
        interval = f"{spread.low:.2f} to {spread.high:.2f}"
        lines.append(f"| {TITLES[method]} | {np.mean(values):.2f} | {interval} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Select, train, compare, write."""
    import os

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--selection-seeds", type=int, nargs="+", default=[1001, 1002])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3, 1e-2, 2e-2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--weight", type=float, nargs="+", default=[1.0, 3.0], help="lambda")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.4])
    arguments = parser.parse_args()
    os.environ.update(launcher_environment())
    import torch

    from roma_ds.comm import start_world
    from roma_ds.pipeline.folders import installed
    from roma_ds.pipeline.worker import calm_libraries
    from roma_ds.storage.atomic import write_json, write_text

    calm_libraries()
    world = start_world()
    selection = [Seed(arguments.out, seed, arguments.rows, world) for seed in arguments.selection_seeds]
    chosen, trials = choose(selection, arguments)
    right: dict[str, list[np.ndarray]] = {method: [] for method in ("base", *arguments.methods)}
    validation: dict[str, list[float]] = {method: [] for method in right}
    for number in range(arguments.seeds):
        seed = Seed(arguments.out, number, arguments.rows, world)
        for method in right:
            found = seed.measure(method, chosen.get(method, {}))
            right[method].append(found["test"])
            validation[method].append(float(found["validation"].mean()))
    result: dict[str, Any] = {
        "chosen": chosen,
        "selection_seeds": arguments.selection_seeds,
        "trials": trials,
        "rows": arguments.rows,
        "test_questions": len(right["base"][0]),
        "test": {method: [float(values.mean()) for values in found] for method, found in right.items()},
        "validation": validation,
        "compared": {method: compare(right, method) for method in right if method != "roma"},
        "packages": installed(),
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }
    write_json(arguments.out / "evidence.json", result)
    write_text(arguments.out / "evidence.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()
