"""Where the rows of a dataset come from: files, a folder of local datasets, or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from roma_ds.config.schema import RunConfig, TaskConfig
from roma_ds.config.sources import ColumnsConfig, DatasetConfig, Paths, is_hub_id
from roma_ds.data.files import Found, find_files
from roma_ds.data.files.hub import HubRows
from roma_ds.data.files.table import BATCH
from roma_ds.data.message import Message
from roma_ds.data.named import hub_rows_of, local_files, named_dataset
from roma_ds.data.rows import FileAccount, How, Reading, Row
from roma_ds.data.tasks import TASKS, shots_of, task_of
from roma_ds.errors import UserError
from roma_ds.storage import fingerprint


@dataclass(frozen=True)
class Source:
    """One split of one dataset, not read yet. Without files the hub has it."""

    label: str
    split: str
    files: tuple[Found, ...] = ()
    hub: HubRows | None = None
    """Of an OWNER/NAME; None for the names that are known."""
    how: How = field(default_factory=How)

    @property
    def origin(self) -> str:
        """The files, or the dataset's name on the hub."""
        if self.files:
            first, *others = [str(file.path) for file in self.files]
            return f"{first} and {len(others)} more" if others else first
        if self.hub is not None:
            return self.hub.origin
        dataset = named_dataset(self.label)
        return "/".join(part for part in ("hub", dataset.hub_path, dataset.hub_config) if part)

    def open(self) -> SourceRows:
        """Its rows, to be read once. Raises UserError where a file cannot be read."""
        if self.files:
            return SourceRows(Reading([file.open() for file in self.files], self.how))
        if self.hub is not None:
            return SourceRows(Reading([self.hub.open()], self.how))
        return SourceRows(None, lambda: hub_rows_of(self.label, self.split)[: self.how.first])

    def rows(self, say: Callable[[str], None] = lambda note: None) -> list[Row]:
        """All rows, checked. Raises UserError or EnvironmentFault where they cannot be had.

        say: is told what of a file is not read.
        """
        opened = self.open()
        rows = list(chain.from_iterable(opened.batches()))
        for note in opened.notes:
            say(note)
        return rows

    def sha256(self) -> str | None:
        """Of the bytes of its file, or of the digests of its files; None for the hub."""
        if not self.files:
            return None
        parts = [(file.short, part) for file in self.files for part in file.parts]
        if len(parts) == 1:
            return fingerprint.of_file(parts[0][1])
        digests = "".join(f"{short} {fingerprint.of_file(part)}\n" for short, part in parts)
        return hashlib.sha256(digests.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a change of this source can be told from, without reading anything from the hub.

        What is as it is by default is left out, so that folders from before there was a key stay up to date.
        """
        how = {
            "columns": asdict(self.how.columns) if self.how.columns != ColumnsConfig() else None,
            "turns": "all" if self.how.every_turn else None,
            "bad_rows": "skip" if self.how.skip else None,
            "first": self.how.first,
        }
        content = {"sha256": self._digest()} if self.files else {"hub": self.origin}
        given = {key: value for key, value in how.items() if value is not None}
        return {"dataset": self.label, "split": self.split, **content, **given}

    def _digest(self) -> str | None:
        for file in self.files:
            if not file.path.exists():
                raise UserError(
                    f"the data file {file.path} does not exist", "check the path in the run config"
                )
        return self.sha256()


class SourceRows:
    """The rows of a source while they are read, and what is known of them afterwards."""

    def __init__(self, reading: Reading | None, named: Callable[[], list[Row]] = list) -> None:
        self._reading, self._named = reading, named
        self._hash = hashlib.sha256()
        self._count = 0

    def batches(self) -> Iterator[list[Row]]:
        """Checked rows. Raises UserError or EnvironmentFault where they cannot be had."""
        if self._reading is not None:
            yield from self._reading.batches()
            return
        rows = self._named()
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH]

    def note_content(self, rows: list[Row]) -> None:
        """Take rows into the digest of what was read; for rows from the hub, which have no file."""
        for row in rows:
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_plain)
            self._hash.update(f"{', ' if self._count else '['}{text}".encode())
            self._count += 1

    def content(self) -> str:
        """16 digits for the rows that were noted."""
        closed = self._hash.copy()
        closed.update(b"]" if self._count else b"[]")
        return closed.hexdigest()[:16]

    @property
    def notes(self) -> list[str]:
        """What is to be said of rows that are used."""
        return self._reading.notes if self._reading is not None else []

    @property
    def accounts(self) -> list[FileAccount]:
        """What became of each file."""
        return self._reading.accounts if self._reading is not None else []

    @property
    def bad(self) -> int:
        """Rows that were left out because they are malformed."""
        return self._reading.bad if self._reading is not None else 0

    @property
    def problems(self) -> list[str]:
        """What is wrong with the first of these, each with its place."""
        return self._reading.problems if self._reading is not None else []


def training_sources(run: RunConfig) -> list[Source]:
    """One source for each entry of data.train. Raises UserError for unknown names and absent local files."""
    return [
        _source(item, item.label, item.split, run.data.data_root, _how(run, item)) for item in run.data.train
    ]


def evaluation_sources(run: RunConfig) -> list[Source]:
    """One source for each entry of eval.tasks. Raises UserError for unknown names and absent local files."""
    return [
        _source(task, task.name, _split(task), run.eval.data_root, _how(run, task)) for task in run.eval.tasks
    ]


def shots_source(run: RunConfig, task: TaskConfig) -> Source:
    """Where the solved examples of `task` come from. Raises UserError where that is nowhere."""
    how = _how(run, task)
    if task.shots_path is not None:
        label = task.shots_split or "shots"
        return Source(task.name, label, _found(task.shots_path, label), how=how)
    if task.path is not None:
        raise UserError(
            f"eval.shots is {shots_of(run, task)}, but the task {task.name} names no file of solved examples",
            "give the task a shots_path, or set eval.shots=0",
        )
    split = task.shots_split or task_of(task.name).shots_split
    if split is None or split == _split(task):
        raise UserError(
            f"eval.shots is {shots_of(run, task)}, but the task {task.name} has no split for solved examples"
            + (f": {split} is evaluated" if split else ""),
            "give the task another shots_split or a shots_path, or set eval.shots=0",
        )
    return _source(task, task.name, split, run.eval.data_root, how)


def _how(run: RunConfig, item: DatasetConfig | TaskConfig) -> How:
    skip = run.data.on_bad_row == "skip"
    if isinstance(item, TaskConfig):
        return How(item.columns, skip=skip)
    return How(item.columns, run.data.turns == "all", skip, item.first)


def _split(task: TaskConfig) -> str:
    if task.split is not None:
        return task.split
    if task.path is not None or task.name in TASKS or is_hub_id(task.name):
        return task_of(task.name).split
    return named_dataset(task.name).splits[-1]


def _source(item: DatasetConfig | TaskConfig, label: str, split: str, root: str | None, how: How) -> Source:
    if item.path is not None:
        return Source(label, split, _found(item.path, split), how=how)
    if not is_hub_id(label):
        named_dataset(label)
    if root is not None:
        return Source(label, split, local_files(Path(root), label, split), how=how)
    hub = HubRows(label, split, item.subset, item.revision, how.first) if is_hub_id(label) else None
    return Source(label, split, hub=hub, how=how)


def _found(path: Paths, split: str) -> tuple[Found, ...]:
    return find_files(path if isinstance(path, tuple) else (path,), split)


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Message) else str(value)
