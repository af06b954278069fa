"""The data stage: samples and manifest on disk, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from roma_ds.config.schema import DataConfig, RunConfig, TaskConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.message import Message
from roma_ds.data.mixture import DatasetRecord, load_mixture
from roma_ds.data.sample import Sample
from roma_ds.data.sources import Source, evaluation_sources, shots_source, training_sources
from roma_ds.data.tasks import scoring_of, shots_of
from roma_ds.storage.atomic import make_folder, read_parquet, write_json, write_parquet

OUTPUTS = ("samples.parquet", "eval.parquet", "manifest.json")
"""Files of the stage, in the folder `data` of a run."""
OF_CHATS = ("messages", "tools", "templated", "behind_user")
"""Fields of a sample that are columns only where some sample has them: folders from before there were such
fields stay up to date."""


def run_data(
    run: RunConfig,
    out_dir: Path,
    say: Callable[[str], None] = lambda line: None,
    chat: ChatTemplate | None = None,
) -> dict[str, Any]:
    """Read, check, filter and render all data into `out_dir/data`; the manifest that was written there.

    say: is told what was not read and what was dropped, file by file. chat: what writes the prompts; None
    leaves them plain.
    Raises UserError where data is missing or malformed or nothing is left, EnvironmentFault where the hub
    cannot be reached; files from before are then as they were.
    """
    mixture = load_mixture(run, chat)
    for line in told(run, [*mixture.trained, *mixture.evaluated]):
        say(line)
    manifest = {
        "training": _part(mixture.training, mixture.trained),
        "evaluation": _part(mixture.evaluation, mixture.evaluated),
        "excluded": list(run.data.exclude),
        **({"template": {"title": chat.title, **chat.identity()}} if chat is not None else {}),
    }
    folder = make_folder(out_dir / "data")
    save_samples(folder / "samples.parquet", mixture.training)
    save_samples(folder / "eval.parquet", mixture.evaluation)
    write_json(folder / "manifest.json", manifest)
    return manifest


def told(run: RunConfig, records: Sequence[DatasetRecord]) -> list[str]:
    """What is to be said of files: what of them is not read, and what decontamination dropped."""
    size = run.data.decontaminate
    notes = list(dict.fromkeys(note for record in records for note in record.notes))
    return notes + [line for record in records if size != "off" for line in record.account(size)]


def data_inputs(run: RunConfig, chat: ChatTemplate | None = None) -> dict[str, Any]:
    """All that the outputs depend on, as JSON: when it is unchanged the stage is up to date.

    chat: as `run_data` takes it.
    Raises UserError where a local file is missing. A dataset on the hub counts as unchanged.
    """
    return {
        "training": [
            {
                **source.identity(),
                "limit": item.limit,
                # It chooses the rows that a limit leaves; without one, all seeds share the caches.
                "seed": run.train.seed if item.limit else None,
                "answer": item.answer,
            }
            for item, source in zip(run.data.train, training_sources(run), strict=True)
        ],
        "evaluation": [
            _task_inputs(run, task, source)
            for task, source in zip(run.eval.tasks, evaluation_sources(run), strict=True)
        ],
        "exclude": list(run.data.exclude),
        # Folders from before there was the key stay up to date under its default.
        **({"decontaminate": size} if (size := run.data.decontaminate) != DataConfig.decontaminate else {}),
        "columns": [spec.name for spec in fields(Sample) if spec.name not in OF_CHATS],
        **({"template": chat.identity()} if chat is not None else {}),
    }


def _task_inputs(run: RunConfig, task: TaskConfig, source: Source) -> dict[str, Any]:
    inputs = {
        **source.identity(),
        "limit": task.limit or run.eval.limit,
        "scoring": scoring_of(run, task),
    }
    if shots_of(run, task):
        inputs["shots"] = {
            "count": shots_of(run, task),
            "seed": run.eval.seed,
            **shots_source(run, task).identity(),
        }
    return inputs


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as Parquet, one column a field, row order as given."""
    columns = {}
    for spec in fields(Sample):
        values = [getattr(sample, spec.name) for sample in samples]
        if spec.name not in OF_CHATS or any(value != spec.default for value in values):
            columns[spec.name] = [_plain(value) for value in values]
    write_parquet(path, columns)


def load_samples(path: Path) -> list[Sample]:
    """The samples that `save_samples` wrote. Raises UserError where the file is absent or damaged."""
    columns = read_parquet(path)
    names = [spec.name for spec in fields(Sample) if spec.name not in OF_CHATS or spec.name in columns]
    return [
        Sample(**{name: _typed(value) for name, value in zip(names, values, strict=True)})
        for values in zip(*(columns[name] for name in names), strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if isinstance(value, Message) else value


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_typed(one) for one in value)
    return Message(**value) if isinstance(value, dict) else value


def _part(samples: Sequence[Sample], records: Sequence[DatasetRecord]) -> dict[str, Any]:
    return {"samples": len(samples), "datasets": [_entry(record) for record in records]}


def _entry(record: DatasetRecord) -> dict[str, Any]:
    """The record with counts before the ids."""
    entry = asdict(record)
    dropped: dict[str, list[str]] = entry.pop("dropped")
    examples = entry.pop("examples")
    if not record.notes:
        del entry["notes"]
    if not record.shots:
        del entry["shots"], entry["shots_source"]
    entry["dropped"] = {
        reason: {"count": len(ids), "ids": ids, "examples": examples[reason]}
        for reason, ids in dropped.items()
    }
    return entry
