"""The training mixture and the evaluation samples of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from roma_ds.config.schema import AnswerForm, RunConfig, TaskConfig
from roma_ds.data.decontamination import REASONS, Decontamination
from roma_ds.data.named import named_dataset
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample
from roma_ds.data.shots import Preface, preface
from roma_ds.data.sources import Source, evaluation_sources, training_sources
from roma_ds.data.tasks import TASKS, scoring_of
from roma_ds.data.templates import render
from roma_ds.errors import UserError


@dataclass(frozen=True)
class DatasetRecord:
    """What became of the rows of one dataset; an entry of the manifest."""

    dataset: str
    split: str
    source: str
    sha256: str
    rows: int
    used: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Ids of dropped samples by reason: a key of decontamination.REASONS."""
    over_limit: int = 0
    """Samples left out because of the limit."""
    shots: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the rows that a task's solved examples are made of, by subject where it tells them apart."""
    shots_source: str = ""
    """Where these rows come from."""


@dataclass(frozen=True)
class Mixture:
    """All samples of a run, each list in the order of the config and of the files."""

    training: list[Sample]
    trained: list[DatasetRecord]
    """What became of the rows of each training dataset."""
    evaluation: list[Sample]
    evaluated: list[DatasetRecord]
    """What became of the rows of each task."""


def load_mixture(run: RunConfig) -> Mixture:
    """Read, filter and render everything.

    Training samples that any sample of the evaluated splits gives away are dropped first, also where a limit
    leaves that sample out, so that eval.limit does not change what is trained on. A limit then takes a subset
    that depends on train.seed, and a smaller limit a subset of that.

    Raises UserError where data is missing or malformed or nothing is left, EnvironmentFault where the hub
    cannot be reached.
    """
    everything, evaluation, evaluated = _evaluation(run)
    training, trained = _training(run, Decontamination(everything))
    return Mixture(training, trained, evaluation, evaluated)


def load_training(run: RunConfig) -> tuple[list[Sample], list[DatasetRecord]]:
    """The training part of `load_mixture`."""
    mixture = load_mixture(run)
    return mixture.training, mixture.trained


def load_evaluation(run: RunConfig) -> list[Sample]:
    """The evaluation samples, task by task.

    A limit takes the same subset for every train.seed, so that seeds are compared on the same questions.

    Raises UserError where data is missing or malformed or has no options to choose from, EnvironmentFault
    where the hub cannot be reached.
    """
    return _evaluation(run)[1]


def _training(run: RunConfig, decontamination: Decontamination) -> tuple[list[Sample], list[DatasetRecord]]:
    samples: list[Sample] = []
    records: list[DatasetRecord] = []
    for item, source in zip(run.data.train, training_sources(run), strict=True):
        rendered, sha256 = _rendered(source, item.answer)
        dropped: dict[str, list[str]] = {}
        clean: list[Sample] = []
        for sample in rendered:
            if reason := decontamination.reason(sample):
                dropped.setdefault(reason, []).append(sample.id)
            else:
                clean.append(sample)
        chosen = _subset(clean, item.limit, f"{run.train.seed}/{source.label}/{source.split}")
        samples += chosen
        records.append(_record(source, sha256, len(rendered), len(chosen), dropped))
    if not samples:
        raise UserError(
            "no training sample is left:\n" + "\n".join(_account(record) for record in records),
            "train on other data, or evaluate on other tasks",
        )
    return samples, records


def _evaluation(run: RunConfig) -> tuple[list[Sample], list[Sample], list[DatasetRecord]]:
    """All samples of the evaluated splits, those within the limits, and a record for each task."""
    everything: list[Sample] = []
    samples: list[Sample] = []
    records: list[DatasetRecord] = []
    for task in run.eval.tasks:
        generated = scoring_of(run, task) == "generate"
        if not generated and task.path is None and named_dataset(task.name).free_text:
            raise _no_options(task.name, scoring_of(run, task))
    for task, source in zip(run.eval.tasks, evaluation_sources(run), strict=True):
        rows = source.rows()
        rendered, before = _evaluated(run, task, source, rows)
        if scoring_of(run, task) != "generate" and any(not sample.options for sample in rendered):
            raise _no_options(task.name, scoring_of(run, task))
        chosen = _subset(rendered, task.limit or run.eval.limit, f"{source.label}/{source.split}")
        everything += rendered
        samples += chosen
        record = _record(source, source.digest(rows), len(rendered), len(chosen), {})
        records.append(replace(record, shots=before.examples, shots_source=before.source))
    return everything, samples, records


def _evaluated(
    run: RunConfig, task: TaskConfig, source: Source, rows: Sequence[Row]
) -> tuple[list[Sample], Preface]:
    """The rows of a task as the scoring asks for them, and what stands before each question."""
    cloze = scoring_of(run, task) == "cloze"
    form: AnswerForm = "text" if cloze else "letter"
    layout = TASKS[task.name].layout if cloze and task.name in TASKS else None

    def rendered(row: Row, before: str = "") -> Sample:
        return render(row, form, source.label, source.split, before, layout)

    before = preface(run, task, rows, rendered)
    return [rendered(row, before.before(row)) for row in rows], before


def _rendered(source: Source, form: AnswerForm) -> tuple[list[Sample], str]:
    """All samples of a source to train on and the digest of its rows."""
    rows = source.rows()
    return [render(row, form, source.label, source.split) for row in rows], source.digest(rows)


def _subset(samples: list[Sample], limit: int | None, seed: str) -> list[Sample]:
    """At most `limit` samples in their own order."""
    if limit is None or len(samples) <= limit:
        return samples
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    return [samples[place] for place in sorted(order[:limit])]


def _record(
    source: Source, sha256: str, rows: int, used: int, dropped: dict[str, list[str]]
) -> DatasetRecord:
    gone = sum(len(ids) for ids in dropped.values())
    return DatasetRecord(
        source.label, source.split, source.origin, sha256, rows, used, dropped, rows - gone - used
    )


def _account(record: DatasetRecord) -> str:
    reasons = ", ".join(f"{len(ids)} dropped because {REASONS[key]}" for key, ids in record.dropped.items())
    return f"  {record.dataset}/{record.split}: {record.rows} rows, {reasons}"


def _no_options(task: str, scoring: str) -> UserError:
    return UserError(
        f"eval.tasks: {task} has free-text answers, which {scoring} scoring cannot score: it needs options",
        f"give the task scoring: generate, remove {task} from eval.tasks, or give its rows choices",
    )
