"""The data stage: samples and manifest on disk, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from roma_ds.config.schema import DataConfig, RunConfig, TaskConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.learned import answer_form
from roma_ds.data.mixture import write_mixture
from roma_ds.data.records import DatasetRecord
from roma_ds.data.sample import Sample
from roma_ds.data.sources import Source, evaluation_sources, shots_source, training_sources
from roma_ds.data.spool import OPTIONAL, read_samples, write_samples
from roma_ds.data.tasks import scoring_of, shots_of
from roma_ds.storage.atomic import make_folder, write_json, writing

OUTPUTS = ("samples.parquet", "eval.parquet", "manifest.json")
"""Files of the stage, in the folder `data` of a run."""


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
    folder = make_folder(out_dir / "data")
    with writing(folder / "samples.parquet") as training, writing(folder / "eval.parquet") as evaluation:
        mixture = write_mixture(run, training, evaluation, chat)
    for line in told(run, [*mixture.trained, *mixture.evaluated]):
        say(line)
    manifest = {
        "training": _part(mixture.training, mixture.trained),
        "evaluation": _part(mixture.evaluation, mixture.evaluated),
        "excluded": list(run.data.exclude),
        **({"template": {"title": chat.title, **chat.identity()}} if chat is not None else {}),
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def told(run: RunConfig, records: Sequence[DatasetRecord]) -> list[str]:
    """What is to be said of files: what of them is not read or left out, and what decontamination dropped."""
    size = run.data.decontaminate
    notes = list(dict.fromkeys(note for record in records for note in record.notes))
    left_out = [line for record in records for line in record.left_out()]
    return notes + left_out + [line for record in records if size != "off" for line in record.account(size)]


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
                "answer": answer_form(item),
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
        "columns": [spec.name for spec in fields(Sample) if spec.name not in OPTIONAL],
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
    with writing(path) as temporary:
        write_samples(temporary, samples)


def load_samples(path: Path) -> list[Sample]:
    """The samples that `save_samples` wrote. Raises UserError where the file is absent or damaged."""
    return read_samples(path)


def _part(samples: int, records: Sequence[DatasetRecord]) -> dict[str, Any]:
    return {"samples": samples, "datasets": [record.entry() for record in records]}
