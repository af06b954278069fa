"""What a study trains and measures: its entries, their settings, and the cells that these make with seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from roma_ds.baselines.methods import METHODS, Method
from roma_ds.baselines.variants import TRAINED
from roma_ds.config import RunConfig, load_run_config
from roma_ds.config.overrides import Override, parse_override
from roma_ds.config.spelling import did_you_mean
from roma_ds.config.study import StudyConfig, VariantConfig
from roma_ds.errors import UserError
from roma_ds.storage import fingerprint

Purpose = Literal["select", "report"]
Point = tuple[str, ...]
OF_S = ("samples", "temperature", "seed", "max_new_tokens", "right_share")
"""Keys of `collect` that decide S."""
FORBIDDEN = (
    *("output_dir", "train.seed", "data", "eval", "model", "controls"),
    *(f"collect.{key}" for key in OF_S),
)
"""Keys that all cells of a study have in common, or that the study itself sets."""


@dataclass(frozen=True)
class Curve:
    """The place of an entry on a curve."""

    title: str
    key: str
    value: Any


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    method: Method
    overrides: Point
    grid: tuple[Point, ...] = ((),)
    """Settings to choose from; one empty one where there is nothing to choose."""
    curve: Curve | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether its settings are chosen by a selection."""
        return len(self.grid) > 1


@dataclass(frozen=True)
class Cell:
    """One training and measurement."""

    entry: Entry
    point: Point
    seed: int
    purpose: Purpose
    run: RunConfig
    """With everything that the variant changes, output_dir its own folder."""

    @property
    def title(self) -> str:
        """For log lines."""
        return " ".join([self.entry.name, *self.point, f"seed {self.seed}"])

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.run.output_dir)


def entries(study: StudyConfig) -> list[Entry]:
    """The lines of the study's table. Raises UserError for unknown variants and keys that no cell may set."""
    problems: list[str] = []
    found: list[Entry] = []
    _settings(study.set, "set", problems, forbidden=())
    for place, given in enumerate(study.variants):
        where = f"variants.{place}"
        method = METHODS.get(given.variant)
        if method is None:
            problems.append(
                f"{where}: no variant {given.variant!r}{did_you_mean(given.variant, list(METHODS))}"
            )
            continue
        _settings(given.set, f"{where}.set", problems)
        if given.sweep is not None:
            found += _swept(given, method, where, problems)
            continue
        lists = _settings(given.grid, f"{where}.grid", problems, lists=True)
        points = itertools.product(*([f"{one.path}={_yaml(v)}" for v in one.value] for one in lists))
        found.append(Entry(given.name, method, tuple(given.set), tuple(points)))
    if problems:
        raise UserError(f"{study.source.name}: " + "\n".join(problems), "see docs/study.md")
    names = [entry.name for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{study.source.name}: {', '.join(twice)} would be in the table twice", "give each a label"
        )
    return found


def _swept(given: VariantConfig, method: Method, where: str, problems: list[str]) -> Iterator[Entry]:
    for one in _settings([str(given.sweep)], f"{where}.sweep", problems, lists=True):
        for value in one.value:
            setting = f"{one.path}={_yaml(value)}"
            name = f"{given.name} {one.path.rpartition('.')[2]}={_yaml(value)}"
            yield Entry(
                name, method, (*given.set, setting), curve=Curve(f"{given.name}: {one.path}", one.path, value)
            )


def _settings(
    texts: Sequence[str],
    where: str,
    problems: list[str],
    lists: bool = False,
    forbidden: Sequence[str] = FORBIDDEN,
) -> list[Override]:
    found = []
    for text in texts:
        item = parse_override(text)
        if not isinstance(item, Override):
            problems.append(f"{where}: {item.message}")
        elif any(f"{item.path}.".startswith(f"{key}.") for key in forbidden):
            problems.append(
                f"{where}: {item.path} is the same for all variants; put it into the study's own set or run"
            )
        elif lists and not (isinstance(item.value, list) and item.value):
            problems.append(f"{where}: {text!r} names no list of values; write {item.path}=[a, b]")
        else:
            found.append(item)
    return found


def _yaml(value: Any) -> str:
    """A value of a list as an override takes it."""
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value)) if _plain(value) else str(value)
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def slug(text: str) -> str:
    """A folder name for it, its own for every text."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-")[:60]
    return plain if plain == text else f"{plain}-{fingerprint.of_json(text)[:6]}"


class Planner:
    """Makes the cells of a study from its run config."""

    def __init__(self, study: StudyConfig, config: Path) -> None:
        """config: the run config's file."""
        self.study = study
        self.config = config
        self.root = Path(study.output_dir)
        self.entries = entries(study)

    def shared_run(self) -> RunConfig:
        """The run whose data all cells share. Raises UserError where it is no run config or has no tasks."""
        run = self._load(self.study.set, self.root / "shared", self.study.seeds[0])
        if not run.eval.tasks:
            raise UserError(
                f"{self.study.source.name}: eval.tasks of the run {self.config.name} is empty",
                "name tasks in the run config or in `set`: a study compares what variants answer",
            )
        return run

    def cell(self, entry: Entry, point: Point, seed: int, purpose: Purpose) -> Cell:
        """One cell. Raises UserError where its settings are no run config."""
        parts = [purpose, slug(entry.name), *([slug(" ".join(point))] if point else []), f"seed-{seed}"]
        folder = self.root.joinpath(*parts)
        run = self._load([*self.study.set, *entry.overrides, *point], folder, seed)
        if entry.method.name in TRAINED:
            run = TRAINED[entry.method.name].config(run)
        return Cell(entry, point, seed, purpose, run)

    def selection(self) -> list[Cell]:
        """The cells by which settings are chosen."""
        return [
            self.cell(entry, point, seed, "select")
            for entry in self.entries
            if entry.is_chosen
            for point in entry.grid
            for seed in self.study.select.seeds
        ]

    def reported(self, chosen: Mapping[str, Point]) -> list[Cell]:
        """The cells of the table, seed by seed, so that a part of the study is a table of fewer seeds.

        chosen: by name, the point of an entry that has a grid.
        """
        return [
            self.cell(entry, chosen.get(entry.name, entry.grid[0]), seed, "report")
            for turn, seed in enumerate(self.study.seeds)
            for entry in self.entries
            if entry.method.seeded or turn == 0
        ]

    def everything(self) -> list[Cell]:
        """All cells that there may be: what must be shared is seen from them."""
        possible = [
            self.cell(entry, point, self.study.seeds[0], "report")
            for entry in self.entries
            for point in entry.grid
        ]
        return [*self.selection(), *possible]

    def _load(self, settings: Sequence[str], folder: Path, seed: int) -> RunConfig:
        values = [*settings, f"train.seed={seed}", f"output_dir={folder}"]
        run = load_run_config(self.config, values)
        return replace(run, controls=())
