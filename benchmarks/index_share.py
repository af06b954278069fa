"""Which part of a training step the live index takes: `index_speed.py share`."""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
from pathlib import Path
from typing import Any

from comparison import SHARED_STAGES, Project, Records, plain_steps, spread, write_result
from index_share_worker import BESIDE, INDEX
from launched import launch
from shapes import Questions, Shape, from_options

STILL = "without refreshing"
DAY = 24 * 3600.0
MOST_SHARE = 0.02
"""What neighbours and synchronisation may take of a step."""


def prepared(arguments: argparse.Namespace) -> tuple[Project, Path]:
    """The project of `share` and a job in it with every stage before training done; kept between calls."""
    shape, questions = from_options(arguments, Shape), from_options(arguments, Questions)
    name = f"share-{shape.layers}x{shape.hidden}x{shape.experts}-{questions.samples}x{questions.tokens}"
    project = Project(
        arguments.work / name,
        shape,
        questions,
        ranks=arguments.share_ranks,
        micro_batch=arguments.micro_batch,
        epochs=1,
        trained=arguments.trained,
    ).prepare()
    job = project.folder / "job-share"
    if not job.exists():
        for stage in SHARED_STAGES:
            shutil.copytree(project.shared / stage, job / stage)
    words = ["--config", str(project.config(0)), "--until", "index", *settings(arguments, job)]
    ranks = project.folder / "ranks" / "stages"
    launch("prefix_worker.py", project.ranks, words, ranks, timeout=DAY)
    return project, job


def settings(arguments: argparse.Namespace, job: Path) -> list[str]:
    """Config values of `share`."""
    return ["roma.refresh=1", "eval.batch_size=256", *arguments.override, f"output_dir={job}"]


def share(arguments: argparse.Namespace) -> None:
    """What neighbours, updates and checks of the live index add to a training step.

    Each turn trains with S as collected and with each placement. Waiting is the part of a step in which the
    training waits for the index; the whole difference also holds what the index's thread takes away from it.
    """
    project, job = prepared(arguments)
    kinds = {STILL: ["roma.refresh=never"]}
    kinds |= {kind: [f"index.placement={kind}"] for kind in arguments.placements}
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind, words in kinds.items():
            shutil.rmtree(job / "train", ignore_errors=True)
            given = ["--config", str(project.config(0)), "--until", "train", "--steps", str(arguments.steps)]
            given += [*settings(arguments, job), *words]
            out = project.folder / "ranks" / f"share-{kind}"
            turns[kind].append(shares_of(launch("index_share_worker.py", project.ranks, given, out)))
    for kind in arguments.placements:
        waits = spread([turn["share"] for turn in turns[kind]])
        longer = spread(
            [
                turn["step"]["median"] / still["step"]["median"] - 1
                for turn, still in zip(turns[kind], turns[STILL], strict=True)
            ]
        )
        listed = ", ".join(
            f"{name} {100 * statistics.median(turn['shares'][name] for turn in turns[kind]):.2f}%"
            for name in (*INDEX, BESIDE)
        )
        print(
            f"{kind}, {project.ranks} ranks: a step waits {percent(waits)} of its time for the index "
            f"({listed}); wanted at most {100 * MOST_SHARE:g}%: "
            f"{'yes' if waits['median'] <= MOST_SHARE else 'NO'}; median step longer than without refreshing "
            f"by {percent(longer)}",
            flush=True,
        )
        write_result(
            arguments.out,
            f"index-share-{project.questions.samples}-ranks{project.ranks}-{kind}",
            {
                **project.describe(),
                "overrides": arguments.override,
                "share": waits,
                "longer": longer,
                "turns": turns[kind],
                "without_refreshing": turns[STILL],
            },
        )


def percent(value: dict[str, float]) -> str:
    """A spread of shares."""
    return f"{100 * value['median']:.2f}% ({100 * value['least']:.2f} to {100 * value['largest']:.2f})"


def shares_of(records: Records) -> dict[str, Any]:
    """Of one training, over steps and ranks, checks included: the share of a step that waits for the index.

    Left out are steps to warm up and those that are logged.
    """
    parts: dict[str, list[float]] = {}
    names = (*INDEX, BESIDE, "clock")
    for record in records:
        steps = [
            {name: after.get(name, 0.0) - before.get(name, 0.0) for name in names}
            for before, after in itertools.pairwise(record["by_step"])
        ]
        # `by_step` begins behind the first step, so its difference number i is that of step i + 1.
        for number in plain_steps(record):
            for name, value in steps[number - 1].items():
                parts.setdefault(name, []).append(value)
    mean = {name: statistics.fmean(values) for name, values in parts.items()}
    return {
        "share": sum(mean[name] for name in INDEX) / mean["clock"],
        "shares": {name: mean[name] / mean["clock"] for name in (*INDEX, BESIDE)},
        "step": spread(parts["clock"]),
        "seconds": mean,
        "median_seconds": {name: statistics.median(values) for name, values in parts.items()},
        "steps": len(plain_steps(records[0])),
        "successful": [records[0]["by_step"][place]["successful"] for place in (0, -1)],
        "searched": [record["searched"] for record in records],
        "memory": [record["memory"] for record in records],
    }
