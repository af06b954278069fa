"""What a run folder holds, read for the report; whatever is absent or damaged becomes a note.

Shapes: routing [eval samples, moe layers, experts], embeddings [eval samples, dim]; rows: data/eval.parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.monitor.metrics_log import Record, read_metrics
from roma_ds.monitor.wording import in_order, variant_title
from roma_ds.storage.atomic import read_json, read_parquet

Columns = Mapping[str, list[Any]]
Found = TypeVar("Found")
NOT_EVALUATED = "Nothing was evaluated, since eval.tasks is empty"
MAX_KINDS = 40
"""Pictures have a row or a colour a kind of sample."""


@dataclass(frozen=True)
class Variant:
    """One evaluated variant."""

    name: str
    result: Mapping[str, Any]
    """eval/<variant>.json"""
    samples: Columns | None
    """eval/<variant>.samples.parquet"""
    routing: NDArray[np.floating] | None
    """eval/<variant>.routing.npy, memory mapped"""


@dataclass(frozen=True)
class Run:
    """The contents of a run folder."""

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    """file name relative to the folder -> stage record"""
    variants: Mapping[str, Variant]
    """in the order of every table"""
    metrics: Mapping[str, list[Record]]
    """variant -> records of its training"""
    samples: Columns
    """data/samples.parquet; empty when absent"""
    outcome: Columns
    """collect/outcome.parquet; empty when absent"""
    evaluation: Columns
    """data/eval.parquet; empty when absent"""
    embeddings: NDArray[np.floating] | None
    """embed/eval_embeddings.npy"""
    tensorboard: bool
    notes: tuple[str, ...]

    def extra(self, stage: str) -> Mapping[str, Any]:
        """The stage's own facts from its record; empty when it has none."""
        found: Mapping[str, Any] = self._record(stage).get("extra") or {}
        return found

    def seconds(self, stage: str) -> float | None:
        """How long a stage took; stages recorded in several parts are summed."""
        record = self._record(stage)
        if "seconds" in record:
            return float(record["seconds"])
        parts = [
            float(entry["seconds"])
            for name, entry in self.stages.items()
            if "seconds" in entry and (entry.get("stage") == stage or name.startswith(f"{stage}/"))
        ]
        if not parts and stage == "eval":
            parts = [float(v.result["seconds"]) for v in self.variants.values() if v.result.get("seconds")]
        return sum(parts) if parts else None

    def last_step(self, variant: str) -> int:
        """The last step that the training of a variant logged; 0 for one without, as the base model."""
        records = self.metrics.get(variant)
        return int(records[-1]["step"]) if records else 0

    def _record(self, stage: str) -> Mapping[str, Any]:
        return self.stages.get(f"{stage}/stage.json", {})

    def moe_layers(self, count: int) -> list[int]:
        """Layer numbers of the MoE layers, in the order of the routing arrays' second axis."""
        extra = self.extra("collect")
        for key in ("moe_layers", "layers"):
            numbers = extra.get(key)
            if isinstance(numbers, list) and len(numbers) == count:
                return [int(number) for number in numbers]
        return list(range(count))

    def chosen_layers(self, count: int) -> list[int]:
        """Positions on the routing arrays' layer axis of the layers whose routers are trained."""
        numbers = self.moe_layers(count)
        chosen = self.config.get("roma", {}).get("layers", "all")
        if isinstance(chosen, list):
            picked = [numbers.index(number) for number in chosen if number in numbers]
            return picked or list(range(count))
        for prefix in ("last", "first", "middle"):
            if str(chosen).startswith(prefix) and str(chosen)[len(prefix) :].isdigit():
                size = min(int(chosen[len(prefix) :]), count)
                start = {"first": 0, "middle": (count - size) // 2, "last": count - size}[prefix]
                return list(range(start, start + size))
        return list(range(count))

    def labels(self) -> list[str]:
        """The skill or subject of each evaluation sample, else its task; at most 40 kinds where possible."""
        found: list[str] = []
        for column in ("skill", "subject", "task"):
            values = self.evaluation.get(column)
            if values and any(values):
                found = [str(value or "none") for value in values]
                if len(set(found)) <= MAX_KINDS:
                    break
        return found


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError when `folder` is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give the output_dir of a run")
    notes: list[str] = []
    config_file = folder / "config.resolved.yaml"
    config_text = config_file.read_text(errors="replace") if config_file.exists() else ""
    if not config_text:
        notes.append("config.resolved.yaml is missing: settings are not shown")
    metrics = _metrics(folder, notes)
    tensorboard = any((folder / "train" / "tensorboard").rglob("*tfevents*"))
    if not tensorboard:
        notes.append("no TensorBoard files in train/tensorboard; the curves below come from metrics.jsonl")
    config = _mapping(config_text, notes)
    stages = _stages(folder, notes)
    if names_no_task(config):
        # What an earlier config of this folder measured is none of this run.
        stages = {name: record for name, record in stages.items() if not name.startswith("eval/")}
        notes.append(NOT_EVALUATED)
    return Run(
        folder=folder,
        config=config,
        config_text=config_text,
        environment=_read(folder / "environment.json", read_json, notes) or {},
        stages=stages,
        variants={} if names_no_task(config) else _variants(folder, notes),
        metrics=metrics,
        samples=_read(folder / "data" / "samples.parquet", read_parquet, notes) or {},
        outcome=_read(folder / "collect" / "outcome.parquet", read_parquet, notes) or {},
        evaluation=_read(folder / "data" / "eval.parquet", read_parquet, notes) or {},
        embeddings=_read(folder / "embed" / "eval_embeddings.npy", _array, notes),
        tensorboard=tensorboard,
        notes=tuple(notes),
    )


def names_no_task(config: Mapping[str, Any]) -> bool:
    """Whether a run evaluates nothing by its own config."""
    section = config.get("eval")
    return isinstance(section, Mapping) and section.get("tasks") == []


def _mapping(config_text: str, notes: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config_text)
    except yaml.YAMLError:
        content = config_text
    if content is None or isinstance(content, dict):
        return content or {}
    notes.append("config.resolved.yaml is damaged: its settings are not used")
    return {}


def _variants(folder: Path, notes: list[str]) -> dict[str, Variant]:
    found = {}
    for file in sorted((folder / "eval").glob("*.json")):
        if file.name.endswith("stage.json"):
            continue
        result = _read(file, read_json, notes)
        if isinstance(result, dict) and "tasks" in result:
            samples = _read(file.with_suffix(".samples.parquet"), read_parquet, notes)
            routing = file.with_suffix(".routing.npy")
            array = _read(routing, _array, notes) if routing.exists() else None
            found[file.stem] = Variant(file.stem, result, samples, array)
    for name in ("base", "router_tuning", "roma"):
        if name not in found:
            notes.append(f"{variant_title(name)} was not evaluated")
    return {name: found[name] for name in in_order(list(found))}


def _metrics(folder: Path, notes: list[str]) -> dict[str, list[Record]]:
    files = {"roma": folder / "train" / "metrics.jsonl"}
    files |= {file.parent.name: file for file in sorted((folder / "controls").glob("*/metrics.jsonl"))}
    read = {name: _read(file, read_metrics, notes) for name, file in files.items()}
    return {name: read[name] or [] for name in in_order(list(read)) if read[name]}


def _stages(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    files = [*folder.glob("*/*stage.json"), *folder.glob("*/*/*stage.json")]
    read = {str(file.relative_to(folder)): _read(file, read_json, notes) for file in sorted(files)}
    return {name: record for name, record in read.items() if isinstance(record, dict)}


def _read(file: Path, reader: Callable[[Path], Found], notes: list[str]) -> Found | None:
    try:
        return reader(file)
    except UserError as error:
        notes.append(error.message.replace(f"{file.parent.parent}/", ""))
        return None


def _array(file: Path) -> NDArray[np.floating]:
    try:
        array: NDArray[np.floating] = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist", "run the stage that makes it") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}", "delete it and rerun") from error
    return array
