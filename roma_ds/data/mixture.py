"""The training mixture and the evaluation samples of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from roma_ds.config.schema import AnswerForm, RunConfig, TaskConfig
from roma_ds.data.asked import asked
from roma_ds.data.chat import ChatTemplate, templated
from roma_ds.data.decontamination import Decontamination, reasons
from roma_ds.data.named import named_dataset
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample
from roma_ds.data.shots import Preface, preface
from roma_ds.data.sources import Source, evaluation_sources, training_sources
from roma_ds.data.tally import Overlap
from roma_ds.data.tasks import TASKS, scoring_of
from roma_ds.data.templates import render
from roma_ds.errors import UserError

SHOWN = 3
"""Dropped samples of a file that are shown."""


@dataclass(frozen=True)
class Example:
    """A dropped sample: its id, that of the evaluation sample it gives away, and the words they share."""

    sample: str
    evaluation: str
    words: str


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
    """Ids of dropped samples by reason: a key of decontamination.reasons."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """Some of them, by the same keys."""
    over_limit: int = 0
    """Samples left out because of the limit."""
    shots: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the rows that a task's solved examples are made of, by subject where it tells them apart."""
    shots_source: str = ""
    """Where these rows come from."""
    notes: list[str] = field(default_factory=list)
    """What the reading of the file had to say."""

    def account(self, size: int) -> Iterator[str]:
        """Lines that say how many samples were dropped, why, and show some. size: words of a shared run."""
        if self.dropped:
            parts = [f"{len(ids)} dropped because {reasons(size)[key]}" for key, ids in self.dropped.items()]
            yield f"{self.dataset}/{self.split}: {self.rows} rows, {', '.join(parts)}"
        for example in islice(chain.from_iterable(self.examples.values()), SHOWN):
            words = example.words if len(example.words) <= 120 else example.words[:117] + "..."
            yield f"  {example.sample} and {example.evaluation}: {words!r}"


@dataclass(frozen=True)
class Mixture:
    """All samples of a run, each list in the order of the config and of the files."""

    training: list[Sample]
    trained: list[DatasetRecord]
    """What became of the rows of each training dataset."""
    evaluation: list[Sample]
    evaluated: list[DatasetRecord]
    """What became of the rows of each task."""


def load_mixture(run: RunConfig, chat: ChatTemplate | None = None) -> Mixture:
    """Read, filter and render everything. chat: what writes the prompts; None leaves them plain.

    Training samples that any sample of the evaluated splits gives away are dropped first, also where a limit
    leaves that sample out, so that eval.limit does not change what is trained on. A limit then takes a subset
    that depends on train.seed, and a smaller limit a subset of that.

    Raises UserError where data is missing or malformed or nothing is left, EnvironmentFault where the hub
    cannot be reached.
    """
    everything, evaluation, evaluated = _evaluation(run, chat)
    training, trained = _training(run, everything, chat)
    return Mixture(training, trained, evaluation, evaluated)


def load_training(
    run: RunConfig, chat: ChatTemplate | None = None
) -> tuple[list[Sample], list[DatasetRecord]]:
    """The training part of `load_mixture`."""
    mixture = load_mixture(run, chat)
    return mixture.training, mixture.trained


def load_evaluation(run: RunConfig, chat: ChatTemplate | None = None) -> list[Sample]:
    """The evaluation samples, task by task.

    A limit takes the same subset for every train.seed, so that seeds are compared on the same questions.

    Raises UserError where data is missing or malformed or has no options to choose from, EnvironmentFault
    where the hub cannot be reached.
    """
    return load_evaluated(run, chat)[0]


def load_evaluated(
    run: RunConfig, chat: ChatTemplate | None = None
) -> tuple[list[Sample], list[DatasetRecord]]:
    """The same, and what became of the rows of each task."""
    _, samples, records = _evaluation(run, chat)
    return samples, records


def _training(
    run: RunConfig, evaluated: list[tuple[str, Row]], chat: ChatTemplate | None
) -> tuple[list[Sample], list[DatasetRecord]]:
    size = run.data.decontaminate
    decontamination = None if size == "off" else Decontamination([asked(row) for _, row in evaluated], size)
    samples: list[Sample] = []
    records: list[DatasetRecord] = []
    for item, source in zip(run.data.train, training_sources(run), strict=True):
        notes: list[str] = []
        rows = source.rows(notes.append)
        overlaps = decontamination.overlaps(map(asked, rows)) if decontamination else {}
        directly = chat is not None
        rendered = [render(row, item.answer, source.label, source.split, directly=directly) for row in rows]
        clean = [sample for number, sample in enumerate(rendered) if number not in overlaps]
        chosen = _subset(clean, item.limit, f"{run.train.seed}/{source.label}/{source.split}")
        samples += chosen if chat is None else [templated(sample, chat) for sample in chosen]
        record = _record(source, source.digest(rows), len(rows), len(chosen), len(rows) - len(clean))
        records.append(replace(record, notes=notes, **_dropped(rendered, overlaps, evaluated)))
    if not samples:
        # Where nothing is dropped, files are read that hold rows, and no limit is 0.
        told = "\n".join(f"  {line}" for record in records for line in record.account(int(size)))
        raise UserError(
            f"no training sample is left:\n{told}",
            "train on other data, evaluate on other tasks, or set data.decontaminate to off",
        )
    return samples, records


def _dropped(
    rendered: list[Sample], overlaps: dict[int, Overlap], evaluated: list[tuple[str, Row]]
) -> dict[str, Any]:
    """Ids and examples by reason."""
    dropped: dict[str, list[str]] = {}
    examples: dict[str, list[Example]] = {}
    for number, overlap in overlaps.items():
        ids = dropped.setdefault(overlap.reason, [])
        ids.append(rendered[number].id)
        if len(ids) <= SHOWN:
            example = Example(ids[-1], evaluated[overlap.evaluation][0], overlap.text)
            examples.setdefault(overlap.reason, []).append(example)
    return {"dropped": dropped, "examples": examples}


def _evaluation(
    run: RunConfig, chat: ChatTemplate | None
) -> tuple[list[tuple[str, Row]], list[Sample], list[DatasetRecord]]:
    """All rows of the evaluated splits with their ids, samples within the limits, and a record by task."""
    everything: list[tuple[str, Row]] = []
    samples: list[Sample] = []
    records: list[DatasetRecord] = []
    for task in run.eval.tasks:
        generated = scoring_of(run, task) == "generate"
        if not generated and task.path is None and named_dataset(task.name).free_text:
            raise _no_options(task.name, scoring_of(run, task))
    for task, source in zip(run.eval.tasks, evaluation_sources(run), strict=True):
        notes: list[str] = []
        rows = source.rows(notes.append)
        own = None if task.plain else chat
        rendered, before = _evaluated(run, task, source, rows, own is not None)
        if scoring_of(run, task) != "generate" and any(not sample.options for sample in rendered):
            raise _no_options(task.name, scoring_of(run, task))
        chosen = _subset(rendered, task.limit or run.eval.limit, f"{source.label}/{source.split}")
        everything += [(sample.id, row) for sample, row in zip(rendered, rows, strict=True)]
        if own is not None:
            row_of = {sample.id: row for sample, row in zip(rendered, rows, strict=True)}
            chosen = [templated(one, own, before.turns_before(row_of[one.id])) for one in chosen]
        samples += chosen
        record = _record(source, source.digest(rows), len(rendered), len(chosen), 0)
        records.append(replace(record, shots=before.examples, shots_source=before.source, notes=notes))
    return everything, samples, records


def _evaluated(
    run: RunConfig, task: TaskConfig, source: Source, rows: Sequence[Row], directly: bool
) -> tuple[list[Sample], Preface]:
    """The rows of a task as the scoring asks for them, and what stands before each question.

    directly: as `render` takes it; what stands before is then no part of the samples.
    """
    cloze = scoring_of(run, task) == "cloze"
    form: AnswerForm = "text" if cloze else "letter"
    layout = TASKS[task.name].layout if cloze and task.name in TASKS else None

    def rendered(row: Row, before: str = "") -> Sample:
        return render(row, form, source.label, source.split, before, layout, directly)

    before = preface(run, task, rows, rendered)
    return [rendered(row, "" if directly else before.before(row)) for row in rows], before


def _subset(samples: list[Sample], limit: int | None, seed: str) -> list[Sample]:
    """At most `limit` samples in their own order."""
    if limit is None or len(samples) <= limit:
        return samples
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    return [samples[place] for place in sorted(order[:limit])]


def _record(source: Source, sha256: str, rows: int, used: int, dropped: int) -> DatasetRecord:
    over = rows - dropped - used
    return DatasetRecord(source.label, source.split, source.origin, sha256, rows, used, over_limit=over)


def _no_options(task: str, scoring: str) -> UserError:
    return UserError(
        f"eval.tasks: {task} has free-text answers, which {scoring} scoring cannot score: it needs options",
        f"give the task scoring: generate, remove {task} from eval.tasks, or give its rows choices",
    )
