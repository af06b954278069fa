"""The eval stage: one variant of the routers on all evaluation samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.config.schema import Answers
from roma_ds.data.sample import Sample
from roma_ds.data.tasks import scoring_of, shots_of
from roma_ds.evaluation.answers import read_answer
from roma_ds.evaluation.results import average, task_results, unread_shares
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.scores import Scores
from roma_ds.storage.atomic import make_folder, write_json, write_npy, write_parquet
from roma_ds.writing.generation import Written

Write = Callable[[Sequence[Prompt]], list[Written | None] | None]


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
    write: Write | None = None,
    rows: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Score one variant and write its files. A collective.

    prompts: of the samples, in their order; score: runs the variant over them; write: generates an answer to
    each, which is then what counts; both are collectives, complete on rank 0. rows: of each task, how many
    its split has. Every sample is scored exactly once, whatever the number of ranks. Returns {"average":
    accuracy, "tasks": accuracies, "unread": by task with generated answers the share that could not be read}.
    """
    started = time.monotonic()
    scores = score(prompts)
    written = write(prompts) if write is not None else None
    facts: dict[str, Any] = {}
    with agreement(world):
        if scores is not None:
            columns: dict[str, Any] = {}
            if written is not None:
                scores, columns = judged(samples, scores, written, run.eval.answers)
            scoring = {task.name: scoring_of(run, task) for task in run.eval.tasks}
            results = task_results(samples, scores, scoring)
            for task in run.eval.tasks:
                own = [row for row, sample in enumerate(samples) if sample.task == task.name]
                results[task.name] |= {
                    "rows": (rows or {}).get(task.name, len(own)),
                    "scoring": scoring[task.name],
                    "shots": shots_of(run, task),
                    "truncated": sum(prompts[row].truncated for row in own),
                }
                if ends := [one.ended for row in own if written and (one := written[row])]:
                    unread = [not columns["extracted"][row] for row in own if written and written[row]]
                    results[task.name] |= {
                        "unfinished": ends.count(False),
                        "unread": sum(unread) / len(unread),
                        "answers": run.eval.answers,
                    }
            facts = {
                "average": average(results),
                "tasks": {task: result["accuracy"] for task, result in results.items()},
                "unread": unread_shares(results),
            }
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
                    **columns,
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
                    "shots": run.eval.shots,
                    "seconds": round(time.monotonic() - started, 3),
                    "model": {"path": run.model.path, "dtype": run.model.dtype},
                },
            )
    shared: dict[str, Any] = world.from_first(facts)
    return shared


def judged(
    samples: Sequence[Sample], scores: Scores, written: Sequence[Written | None], how: Answers = "roma"
) -> tuple[Scores, dict[str, Any]]:
    """The scores with what generated texts say in place of what is most likely, and further columns.

    written: by sample, None where the answer is scored; how: `eval.answers`.
    """
    predicted, correct = scores.predicted.copy(), scores.correct.copy()
    extracted: list[str | None] = []
    for row, (sample, one) in enumerate(zip(samples, written, strict=True)):
        answer = read_answer(sample, one.text, how) if one is not None else None
        extracted.append(answer.extracted if answer is not None else None)
        if answer is not None:
            predicted[row], correct[row] = answer.predicted, answer.correct
    return replace(scores, predicted=predicted, correct=correct), {
        "generated": [one.text if one is not None else None for one in written],
        "extracted": extracted,
        "new_tokens": [one.tokens if one is not None else None for one in written],
    }
