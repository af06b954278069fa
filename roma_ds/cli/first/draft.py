"""Files into the values of a run's config, and the text of that config."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from roma_ds.config import DatasetConfig, RunConfig, TaskConfig, outline_text, parse_run_config, to_dict
from roma_ds.config.overrides import Override, apply, parse_override
from roma_ds.config.sources import label_of
from roma_ds.config.yaml_text import commented, comments_of, parse
from roma_ds.data.named import NAMED
from roma_ds.data.shapes.first_look import FirstLook, held_out_split, look_at
from roma_ds.data.sources import evaluation_sources
from roma_ds.errors import UserError

_OUTLINE = "own_data"
_PLACE = Path("mine.yaml")
"""Where the config would lie: what relative paths are relative to, and what messages call it."""


@dataclass
class Draft:
    """A config that is being made."""

    values: dict[str, Any]
    """By YAML key; paths of data and of the model are absolute."""
    run: RunConfig
    """The same, parsed."""
    trained: list[FirstLook | None]
    """For each entry of data.train; None where a name says all."""
    evaluated: list[FirstLook | None]
    """For each entry of eval.tasks."""
    fallback: str = ""
    """The text-embedding model that another one stands in for."""

    def change(self, section: str, key: str, value: Any) -> None:
        """Set a key where the user has not."""
        if self.is_default(section, key):
            self.values[section][key] = value
            self.run = parse_run_config(self.text({}), _PLACE)

    def is_default(self, section: str, key: str) -> bool:
        """Whether a key is as in the outline."""
        return bool(self.values[section].get(key) == parse(outline_text(_OUTLINE))[section][key])

    def text(self, notes: Mapping[str, Sequence[str]]) -> str:
        """The config. notes: lines above keys, by key path."""
        outline = outline_text(_OUTLINE)
        header = outline.partition("\n\n")[0].replace(_PLACE.name, self.file)
        return f"{header}\n\n{commented(self.values, comments_of(outline), notes)}"

    @property
    def file(self) -> str:
        """A name for the config's file."""
        return f"{self.run.data.train[0].label.rpartition('/')[2]}.yaml"


def draft(model: str, data: Sequence[str], tests: Sequence[str], overrides: Sequence[str]) -> Draft:
    """The config of a run on these files, with `a.b=c` overrides; the model is not looked at.

    tests: files to evaluate on; none takes a split that a folder of `data` holds out, if there is one.
    Raises UserError where a file cannot be read, where its columns cannot be told apart, and for a wrong
    override.
    """
    values = parse(outline_text(_OUTLINE))
    values["model"]["path"] = model
    values["data"]["train"] = _entries(data)
    values["eval"]["tasks"] = list(_tasks(tests)) if tests else list(_held_out(data))
    values["output_dir"] = f"runs/{label_of(data[0])}"
    run = parse_run_config(_plain(values), _PLACE, overrides)
    values, _ = apply(values, [item for item in map(parse_override, overrides) if isinstance(item, Override)])
    values["model"]["path"] = run.model.path
    every_turn = run.data.turns == "all"
    trained = [
        _looked(item, item.split, every_turn, f"data.train.{place}")
        for place, item in enumerate(run.data.train)
    ]
    evaluated = [
        _looked(task, task.split or "test", False, f"eval.tasks.{place}")
        for place, task in enumerate(run.eval.tasks)
    ]
    values["data"]["train"] = [_given(*pair) for pair in zip(run.data.train, trained, strict=True)]
    values["eval"]["tasks"] = [_given(*pair) for pair in zip(run.eval.tasks, evaluated, strict=True)]
    if not any(look and look.conversations for look in trained) and not every_turn:
        del values["data"]["turns"]
    made = Draft(values, parse_run_config(_plain(values), _PLACE), trained, evaluated)
    for task, entry in zip(made.run.eval.tasks, values["eval"]["tasks"], strict=True):
        if task.path is not None and task.scoring is None and made.run.eval.scoring != "generate":
            entry.update({"scoring": "generate"} if _has_texts(made.run, task.name) else {})
    made.run = parse_run_config(_plain(values), _PLACE)
    return made


def _plain(values: Mapping[str, Any]) -> str:
    return commented(values, {}, {})


def _entries(data: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a file, with a name where two would be called the same."""
    labels = [label_of(path) for path in data]
    return [
        {"path": path}
        if labels.count(label) == 1
        else {"name": f"{label}-{labels[: place + 1].count(label)}", "path": path}
        for place, (path, label) in enumerate(zip(data, labels, strict=True))
    ]


def _tasks(tests: Sequence[str]) -> Iterator[dict[str, Any]]:
    taken: set[str] = set()
    for path in tests:
        # The name of a known task would have that task's prompts.
        name = f"{label_of(path)}-test" if label_of(path) in NAMED else label_of(path)
        if name in taken:
            name = f"{name}-{len(taken) + 1}"
        taken.add(name)
        yield {"name": name, "path": path}


def _held_out(data: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Splits of folders that hold some to evaluate on beside the one to train on."""
    for path, task in zip(data, _tasks(data), strict=True):
        if os.path.isdir(path) and (split := held_out_split(path, "train")):
            yield {**task, "split": split}


def _looked(item: DatasetConfig | TaskConfig, split: str, every_turn: bool, key: str) -> FirstLook | None:
    if item.path is None:
        return None
    for path in item.path if isinstance(item.path, tuple) else (item.path,):
        if not os.path.exists(path) and not glob.has_magic(path):
            raise UserError(
                f"the data file {path} does not exist",
                "give a file, a folder or a pattern; datasets on the hub are named in a config: docs/data.md",
            )
    return look_at(item.path, split, item.columns, every_turn, key)


def _given(item: DatasetConfig | TaskConfig, look: FirstLook | None) -> dict[str, Any]:
    """The keys of an entry that are not as they are by default."""
    columns = to_dict(look.columns) if look is not None else {}
    entry = to_dict(item) | {"columns": columns}
    defaults = {spec.name: spec.default for spec in fields(item) if spec.default is not MISSING}
    given = {key: value for key, value in entry.items() if value not in (None, {})}
    return {key: value for key, value in given.items() if defaults.get(key) != value}


def _has_texts(run: RunConfig, name: str) -> bool:
    """Whether some answer of a task is no option. Raises UserError where its rows are malformed."""
    place = next(place for place, task in enumerate(run.eval.tasks) if task.name == name)
    batches = evaluation_sources(run)[place].open().batches()
    return any(not row.get("choices") for rows in batches for row in rows)
