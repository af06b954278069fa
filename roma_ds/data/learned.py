"""What is learned of each training dataset, and what says that a sample of it is answered right."""

from __future__ import annotations

from collections.abc import Sequence

from roma_ds.config.schema import RunConfig
from roma_ds.config.sources import AnswerForm, DatasetConfig
from roma_ds.data.named import NAMED
from roma_ds.data.sample import Sample
from roma_ds.data.tasks import task_of
from roma_ds.errors import UserError

LIKELY = "likely"


def answer_form(item: DatasetConfig) -> AnswerForm:
    """What follows a prompt of the dataset in training."""
    if item.answer is not None:
        return item.answer
    return "solution" if item.name in NAMED and NAMED[item.name].worked else "letter"


def judge_name(item: DatasetConfig) -> str:
    """What says that its samples are answered right, as `data.train[].judge`."""
    if item.judge is not None:
        return item.judge
    return "final" if answer_form(item) == "solution" else LIKELY


def generated_datasets(run: RunConfig) -> dict[tuple[str, str], str]:
    """By name and split the judge of each training dataset whose samples are judged by generated answers."""
    named = {(item.label, item.split): judge_name(item) for item in run.data.train}
    return {key: judge for key, judge in named.items() if judge != LIKELY}


def generated_rows(run: RunConfig, samples: Sequence[Sample]) -> list[int]:
    """Numbers of the training samples that are judged by generated answers."""
    datasets = generated_datasets(run)
    return [row for row, one in enumerate(samples) if (one.task, one.split) in datasets]


def training_tokens(run: RunConfig) -> dict[str, int]:
    """By name of these datasets, how many tokens a generated answer may have."""
    return {task: run.collect.max_new_tokens for task, _ in generated_datasets(run)}


def stop_texts(run: RunConfig, task: str) -> tuple[str, ...]:
    """Texts at which a generated answer of a dataset or task ends."""
    return run.eval.stop or task_of(task).stop


def refuse_useless(run: RunConfig) -> None:
    """Raises UserError where keys of generated answers go with no dataset, or with the stream engine."""
    judges = generated_datasets(run)
    if judges and run.collect.engine == "stream":
        named = ", ".join("/".join(key) for key in judges)
        raise UserError(
            f"collect.engine is stream, which cannot generate, and S takes generated answers of {named}",
            "set collect.engine to auto or zero3, or the judge of these datasets to likely",
        )
    if not judges and (run.collect.samples > 1 or run.collect.temperature > 0):
        raise UserError(
            "collect.samples and collect.temperature are of no use: no dataset of data.train is judged by "
            "answers that the model generates",
            "give one a judge, such as judge: final, or leave these keys out",
        )
