"""The training mixture and the evaluation samples of a run."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from roma_ds.config.schema import RunConfig, TaskConfig
from roma_ds.config.sources import AnswerForm, DatasetConfig
from roma_ds.data.asked import asked
from roma_ds.data.chat import ChatTemplate, templated
from roma_ds.data.decontamination import Decontamination
from roma_ds.data.learned import answer_form
from roma_ds.data.named import NAMED
from roma_ds.data.plain_chat import ADVICE, answers_of
from roma_ds.data.records import SHOWN, DatasetRecord, Example
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample
from roma_ds.data.shots import Preface, preface
from roma_ds.data.sources import Source, SourceRows, evaluation_sources, training_sources
from roma_ds.data.spool import (
    OF_CHATS,
    Spool,
    batches_of,
    read_samples,
    samples_of,
    write_batches,
    write_samples,
)
from roma_ds.data.tally import Overlap
from roma_ds.data.tasks import TASKS, scoring_of
from roma_ds.data.templates import render
from roma_ds.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """What became of all rows of a run; the samples are in the files that were asked for."""

    training: int
    """Samples."""
    trained: list[DatasetRecord]
    """What became of the rows of each training dataset."""
    evaluation: int
    """Samples."""
    evaluated: list[DatasetRecord]
    """What became of the rows of each task."""


def write_mixture(
    run: RunConfig, training: Path, evaluation: Path, chat: ChatTemplate | None = None
) -> Mixture:
    """Read, filter and render everything into two Parquet files, in the order of the config and of the files.

    chat: what writes the prompts; None leaves them plain.

    Training samples that any sample of the evaluated splits gives away are dropped first, also where a limit
    leaves that sample out, so that eval.limit does not change what is trained on. A limit then takes a subset
    that depends on train.seed, and a smaller limit a subset of that. Training rows are in memory a batch at a
    time.

    Raises UserError where data is missing or malformed or nothing is left, EnvironmentFault where the hub
    cannot be reached.
    """
    everything, samples, evaluated = _evaluation(run, chat)
    # Beside the file, where there is room for it.
    with (
        tempfile.TemporaryDirectory(prefix=".samples.", dir=training.parent) as folder,
        _seldom_collected(),
    ):
        spools, trained = _spooled(run, everything, Path(folder), chat)
        count = _write_used(training, spools, chat)
    write_samples(evaluation, samples)
    return Mixture(count, trained, len(samples), evaluated)


def load_training(
    run: RunConfig, chat: ChatTemplate | None = None
) -> tuple[list[Sample], list[DatasetRecord]]:
    """The training samples, in memory, and what became of the rows of each dataset; as `write_mixture`."""
    samples, _, records = first_training(run, chat, None)
    return samples, records


def first_training(
    run: RunConfig, chat: ChatTemplate | None, most: int | None
) -> tuple[list[Sample], int, list[DatasetRecord]]:
    """The first training samples, `most` of them, how many there are, and the records; as `write_mixture`."""
    everything, _, _ = _evaluation(run, chat)
    with tempfile.TemporaryDirectory() as folder, _seldom_collected():
        spools, trained = _spooled(run, everything, Path(folder), chat)
        path = Path(folder) / "samples.parquet"
        count = _write_used(path, spools, chat)
        return read_samples(path, most), count, trained


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


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for circles of objects less often: rows are many objects and make none."""
    before = gc.get_threshold()
    gc.set_threshold(1000 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


Spooled = list[tuple[Spool, np.ndarray]]
"""Samples of each training dataset on disk, and by number of a row whether it is used."""


def _spooled(
    run: RunConfig, evaluated: list[tuple[str, Row]], folder: Path, chat: ChatTemplate | None
) -> tuple[Spooled, list[DatasetRecord]]:
    size = run.data.decontaminate
    decontamination = None if size == "off" else Decontamination([asked(row) for _, row in evaluated], size)
    spools: Spooled = []
    records: list[DatasetRecord] = []
    for place, (item, source) in enumerate(zip(run.data.train, training_sources(run), strict=True)):
        spool = Spool(folder / str(place))
        opened = source.open()
        tally = decontamination.begin() if decontamination else None
        count = 0
        for rows in opened.batches():
            rendered = [_rendered(row, item, source, chat is not None) for row in rows]
            spool.add(list(chain.from_iterable(rendered)), [len(samples) for samples in rendered])
            if decontamination and tally:
                decontamination.take(tally, [asked(row) for row in rows])
            if not source.files:
                opened.note_content(rows)
            count += len(rows)
        spool.close()
        found = decontamination.found(tally) if decontamination and tally else {}
        clean = np.ones(count, np.bool_)
        clean[list(found)] = False
        used = _subset(clean, item.limit, f"{run.train.seed}/{source.label}/{source.split}")
        spools.append((spool, used))
        sha256 = source.sha256() or opened.content()
        record = _record(source, opened, sha256, count, int(used.sum()), len(found))
        if spool.optional >= OF_CHATS and chat is None:
            record.notes.append(f"{source.origin}: {ADVICE}")
        records.append(replace(record, **_dropped(spool, count, found, evaluated)))
    if not any(used.any() for _, used in spools):
        # Where nothing is dropped, files are read that hold rows, and no limit is 0.
        told = "\n".join(f"  {line}" for record in records for line in record.account(int(size)))
        raise UserError(
            f"no training sample is left:\n{told}",
            "train on other data, evaluate on other tasks, or set data.decontaminate to off",
        )
    return spools, records


def _rendered(row: Row, item: DatasetConfig, source: Source, directly: bool) -> list[Sample]:
    """The samples of a training row: one, but for a conversation of several answers."""
    form = answer_form(item)
    return [render(one, form, source.label, source.split, directly=directly) for one in answers_of(row)]


def _write_used(path: Path, spools: Spooled, chat: ChatTemplate | None) -> int:
    """Write the samples that are used into a file; how many. A file that has just these is taken as it is."""
    if chat is None and len(spools) == 1:
        [(spool, used)] = spools
        if used.all() and spool.only is not None:
            os.replace(spool.only, path)
            return spool.count
    optional = frozenset[str]().union(*(spool.optional for spool, _ in spools))
    return write_batches(path, _used(spools, chat), optional if chat is None else optional | OF_CHATS)


def _used(spools: Spooled, chat: ChatTemplate | None) -> Iterator[Any]:
    """Record batches of the samples that are used, their prompts written by `chat`."""
    for spool, rows in spools:
        for batch in spool.kept(rows):
            if chat is None:
                yield batch
            else:
                yield from batches_of([templated(sample, chat) for sample in samples_of(batch)])


def _dropped(
    spool: Spool, count: int, overlaps: dict[int, Overlap], evaluated: list[tuple[str, Row]]
) -> dict[str, Any]:
    """Ids and examples by reason."""
    dropped: dict[str, list[str]] = {}
    examples: dict[str, list[Example]] = {}
    rows = np.zeros(count, np.bool_)
    rows[list(overlaps)] = True
    ids_of = spool.ids(rows) if overlaps else {}
    for number, overlap in overlaps.items():
        dropped.setdefault(overlap.reason, []).extend(ids_of[number])
        shown = examples.setdefault(overlap.reason, [])
        if len(shown) < SHOWN:
            shown.append(Example(ids_of[number][0], evaluated[overlap.evaluation][0], overlap.text))
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
        if not generated and task.path is None and task.name in NAMED and NAMED[task.name].free_text:
            raise _no_options(task.name, scoring_of(run, task))
    for task, source in zip(run.eval.tasks, evaluation_sources(run), strict=True):
        opened = source.open()
        rows = list(chain.from_iterable(opened.batches()))
        own = None if task.plain else chat
        rendered, before = _evaluated(run, task, source, rows, own is not None)
        if scoring_of(run, task) != "generate" and any(not sample.options for sample in rendered):
            raise _no_options(task.name, scoring_of(run, task))
        everything += [(sample.id, row) for sample, row in zip(rendered, rows, strict=True)]
        used = _subset(
            np.ones(len(rows), np.bool_), task.limit or run.eval.limit, f"{source.label}/{source.split}"
        )
        for place in np.flatnonzero(used):
            sample = rendered[place]
            samples.append(
                sample if own is None else templated(sample, own, before.turns_before(rows[place]))
            )
        if not source.files:
            opened.note_content(rows)
        sha256 = source.sha256() or opened.content()
        record = _record(source, opened, sha256, len(rows), int(used.sum()), 0)
        records.append(replace(record, shots=before.examples, shots_source=before.source))
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


def _subset(clean: np.ndarray, limit: int | None, seed: str) -> np.ndarray:
    """Which rows are used: at most `limit` of the clean ones. clean: bool by row."""
    places = np.flatnonzero(clean)
    if limit is None or len(places) <= limit:
        return clean
    order = list(range(len(places)))
    random.Random(seed).shuffle(order)
    used = np.zeros(len(clean), np.bool_)
    used[places[order[:limit]]] = True
    return used


def _record(
    source: Source, opened: SourceRows, sha256: str, rows: int, used: int, dropped: int
) -> DatasetRecord:
    return DatasetRecord(
        source.label,
        source.split,
        source.origin,
        sha256,
        rows,
        used,
        over_limit=rows - dropped - used,
        notes=list(opened.notes),
        files=opened.accounts,
        bad_rows=opened.bad,
        bad=opened.problems if opened.bad else [],
    )


def _no_options(task: str, scoring: str) -> UserError:
    return UserError(
        f"eval.tasks: {task} has free-text answers, which {scoring} scoring cannot score: it needs options",
        f"give the task scoring: generate, remove {task} from eval.tasks, or give its rows choices",
    )
