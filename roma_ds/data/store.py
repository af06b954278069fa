"""The data stage: samples and manifest on disk, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from roma_ds.config.schema import DataConfig, RunConfig, TaskConfig
from roma_ds.data.mixture import DatasetRecord, load_mixture
from roma_ds.data.sample import Sample
from roma_ds.data.sources import Source, evaluation_sources, shots_source, training_sources
from roma_ds.data.tasks import scoring_of, shots_of
from roma_ds.storage.atomic import make_folder, read_parquet, write_json, write_parquet

OUTPUTS = ("samples.parquet", "eval.parquet", "manifest.json")
"""Files of the stage, in the folder `data` of a run."""


def run_data(run: RunConfig, out_dir: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Read, check, filter and render all data into `out_dir/data`; the manifest that was written there.

    say: is told what was not read and what was dropped, file by file.
    Raises UserError where data is missing or malformed or nothing is left, EnvironmentFault where the hub
    cannot be reached; files from before are then as they were.
    """
    mixture = load_mixture(run)
    for line in told(run, [*mixture.trained, *mixture.evaluated]):
        say(line)
    manifest = {
        "training": _part(mixture.training, mixture.trained),
        "evaluation": _part(mixture.evaluation, mixture.evaluated),
        "excluded": list(run.data.exclude),
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


def data_inputs(run: RunConfig) -> dict[str, Any]:
    """All that the outputs depend on, as JSON: when it is unchanged the stage is up to date.

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
        "columns": [spec.name for spec in fields(Sample)],
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
    write_parquet(
        path,
        {spec.name: [_plain(getattr(sample, spec.name)) for sample in samples] for spec in fields(Sample)},
    )


def load_samples(path: Path) -> list[Sample]:
    """The samples that `save_samples` wrote. Raises UserError where the file is absent or damaged."""
    columns = read_parquet(path)
    names = [spec.name for spec in fields(Sample)]
    return [
        Sample(**{name: _typed(value) for name, value in zip(names, values, strict=True)})
        for values in zip(*(columns[name] for name in names), strict=True)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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
