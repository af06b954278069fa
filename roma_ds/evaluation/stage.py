"""The eval stage: one variant of the routers on all evaluation samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from roma_ds.backbone.encoding import Prompt
from roma_ds.backbone.scores import Scores
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.evaluation.results import average, task_results
from roma_ds.storage.atomic import make_folder, write_json, write_npy, write_parquet


def outputs(variant: str) -> list[str]:
    """Files of one variant, in the folder `eval`."""
    return [f"{variant}.json", f"{variant}.samples.parquet", f"{variant}.routing.npy"]


def evaluate(
    world: World,
    run: RunConfig,
    variant: str,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    folder: Path,
    score: Callable[[Sequence[Prompt]], Scores | None],
) -> dict[str, Any]:
    """Score one variant and write its files. A collective.

    prompts: of the samples, in their order; score: runs the variant over them; a collective, complete on
    rank 0.
    Every sample is scored exactly once, whatever the number of ranks. Returns {"average": accuracy}.
    """
    started = time.monotonic()
    scores = score(prompts)
    facts: dict[str, Any] = {}
    with agreement(world):
        if scores is not None:
            results = task_results(samples, scores, run.eval.scoring)
            facts = {"average": average(results)}
            make_folder(folder)
            write_npy(folder / f"{variant}.routing.npy", scores.routing)
            write_parquet(
                folder / f"{variant}.samples.parquet",
                {
                    "task": [sample.task for sample in samples],
                    "id": [sample.id for sample in samples],
                    "predicted": scores.predicted,
                    "answer": [sample.answer for sample in samples],
                    "option_loglikelihoods": [values.tolist() for values in scores.option_loglikelihoods],
                    "correct": scores.correct,
                },
            )
            write_json(
                folder / f"{variant}.json",
                {
                    "variant": variant,
                    "tasks": results,
                    "average": facts["average"],
                    "truncated": sum(prompt.truncated for prompt in prompts),
                    "scoring": run.eval.scoring,
                    "seconds": round(time.monotonic() - started, 3),
                    "model": {"path": run.model.path, "dtype": run.model.dtype},
                },
            )
    shared: dict[str, Any] = world.from_first(facts)
    return shared
