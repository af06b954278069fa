"""Evaluation tasks as data: prompt texts, split, where solved examples come from, metrics, stop sequences.

The prompt texts of cloze scoring are those of lm-evaluation-harness 0.4 (its task files of the same names),
so that numbers can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from roma_ds.config.schema import RunConfig, Scoring, TaskConfig

Layout = Literal["question", "bare", "gap", "letters"]
Metric = Literal["acc", "acc_norm"]

STOP = ("\nQuestion:", "</s>", "<|im_end|>")
"""What ends a generated answer where a task names nothing: the start of a further question, and the texts of
end tokens that a tokenizer does not know. No blank line: models begin with one, and think in paragraphs."""


@dataclass(frozen=True)
class Task:
    """How one benchmark is evaluated."""

    split: str
    """The split that papers report."""
    shots_split: str | None
    """The split that solved examples come from; None where a task has none."""
    layout: Layout = "question"
    """Prompt and options of cloze scoring, see `templates.py`. Letters are asked for in one way for all."""
    metrics: tuple[Metric, ...] = ("acc", "acc_norm")
    """What cloze scoring reports, as the harness does for this task."""
    description: str = ""
    """What stands before all examples, with `{subject}`."""
    shots_by_subject: bool = False
    """Whether solved examples are of the question's own subject."""
    stop: tuple[str, ...] = STOP
    """Texts at which a generated answer ends; the end-of-text token always ends it."""


TASKS = {
    "arc_challenge": Task("test", "train"),
    "arc_easy": Task("test", "train"),
    "boolq": Task("validation", "train", metrics=("acc",)),
    "commonsense_qa": Task("validation", "train"),
    "gsm8k": Task("test", "train", stop=("Question:", "</s>", "<|im_end|>")),
    "hellaswag": Task("validation", "train", layout="bare"),
    "mmlu": Task(
        "test",
        "dev",
        layout="letters",
        metrics=("acc",),
        description="The following are multiple choice questions (with answers) about {subject}.\n\n",
        shots_by_subject=True,
    ),
    "openbookqa": Task("test", "train"),
    "piqa": Task("validation", "train"),
    "sciq": Task("test", "train"),
    "social_iqa": Task("validation", "train"),
    "winogrande": Task("validation", "train", layout="gap", metrics=("acc",)),
}
"""By name. Every one is a dataset of `named.NAMED` too, which knows where its rows are."""

OWN = Task("test", None)
"""What holds for a file under a name that is no known task."""


def scoring_of(run: RunConfig, task: TaskConfig) -> Scoring:
    """How a task of the run is scored."""
    return task.scoring or run.eval.scoring


def shots_of(run: RunConfig, task: TaskConfig) -> int:
    """Solved examples before each question of a task of the run."""
    return run.eval.shots if task.shots is None else task.shots


def new_tokens_of(run: RunConfig) -> dict[str, int]:
    """Of the tasks whose answers are generated, how many tokens an answer may have."""
    generated = [task for task in run.eval.tasks if scoring_of(run, task) == "generate"]
    return {task.name: run.eval.max_new_tokens for task in generated}


def task_of(name: str) -> Task:
    """The task of that name; for a name of the user's own what holds for any questions."""
    return TASKS.get(name, OWN)
