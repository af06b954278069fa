"""Where the rows of a dataset come from: a file, a folder of local datasets, or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.config.schema import DatasetConfig, RunConfig, TaskConfig
from roma_ds.data.named import hub_rows_of, local_file, named_dataset
from roma_ds.data.rows import Row, read_rows
from roma_ds.data.tasks import TASKS, shots_of, task_of
from roma_ds.errors import UserError
from roma_ds.storage import fingerprint


@dataclass(frozen=True)
class Source:
    """One split of one dataset, not read yet. `file` is None where the hub has it."""

    label: str
    split: str
    file: Path | None

    @property
    def origin(self) -> str:
        """The file, or the dataset's name on the hub."""
        if self.file is not None:
            return str(self.file)
        dataset = named_dataset(self.label)
        return "/".join(part for part in ("hub", dataset.hub_path, dataset.hub_config) if part)

    def rows(self, say: Callable[[str], None] = lambda note: None) -> list[Row]:
        """All rows, checked. Raises UserError or EnvironmentFault where they cannot be had.

        say: is told what of a file is not read.
        """
        return hub_rows_of(self.label, self.split) if self.file is None else read_rows(self.file, say)

    def digest(self, rows: list[Row]) -> str:
        """SHA-256 of the file; 16 digits for the content of `rows` from the hub."""
        return fingerprint.of_json(rows) if self.file is None else fingerprint.of_file(self.file)

    def identity(self) -> dict[str, Any]:
        """What a change of this source can be told from, without reading anything from the hub."""
        if self.file is None:
            content = {"hub": self.origin}
        elif self.file.is_file():
            content = {"sha256": fingerprint.of_file(self.file)}
        elif self.file.is_dir():
            raise UserError(f"{self.file} is a folder, not a data file", "give the path of one file in it")
        else:
            raise UserError(f"the data file {self.file} does not exist", "check the path in the run config")
        return {"dataset": self.label, "split": self.split, **content}


def training_sources(run: RunConfig) -> list[Source]:
    """One source for each entry of data.train. Raises UserError for unknown names and absent local files."""
    return [_source(item, item.label, item.split, run.data.data_root) for item in run.data.train]


def evaluation_sources(run: RunConfig) -> list[Source]:
    """One source for each entry of eval.tasks. Raises UserError for unknown names and absent local files."""
    return [_source(task, task.name, _split(task), run.eval.data_root) for task in run.eval.tasks]


def shots_source(run: RunConfig, task: TaskConfig) -> Source:
    """Where the solved examples of `task` come from. Raises UserError where that is nowhere."""
    if task.shots_path is not None:
        return Source(task.name, task.shots_split or "shots", Path(task.shots_path))
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
    return _source(task, task.name, split, run.eval.data_root)


def _split(task: TaskConfig) -> str:
    if task.split is not None:
        return task.split
    if task.path is not None or task.name in TASKS:
        return task_of(task.name).split
    return named_dataset(task.name).splits[-1]


def _source(item: DatasetConfig | TaskConfig, label: str, split: str, root: str | None) -> Source:
    if item.path is not None:
        return Source(label, split, Path(item.path))
    named_dataset(label)
    return Source(label, split, None if root is None else local_file(Path(root), label, split))
