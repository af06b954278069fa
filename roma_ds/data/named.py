"""The datasets known by name: where the hub has them and how their rows are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roma_ds.config.spelling import did_you_mean
from roma_ds.data.files import Found, split_files
from roma_ds.data.shapes import Row, hub_rows, mixture_rows
from roma_ds.data.shapes.checks import check_rows
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage.hub import why_unreachable


@dataclass(frozen=True)
class NamedDataset:
    """A dataset on the hub."""

    hub_path: str
    """`owner/name` on the hub."""
    hub_config: str | None
    """Configuration there; None for the only one, or where there are parts."""
    splits: tuple[str, ...]
    """Splits whose answers are public."""
    convert: hub_rows.Convert | Mapping[str, hub_rows.Convert]
    """A hub row into a row of ours. By configuration where several are taken one after the other; their names
    then come before the ids."""
    free_text: bool = False
    """Answers are texts without options, so that letter and cloze scoring cannot evaluate it."""
    worked: bool = False
    """Whether its rows have worked solutions, which training then learns whole by default."""


_ALL = ("train", "validation", "test")
_NO_TEST = ("train", "validation")

NAMED = {
    "arc_challenge": NamedDataset("allenai/ai2_arc", "ARC-Challenge", _ALL, hub_rows.labelled()),
    "arc_easy": NamedDataset("allenai/ai2_arc", "ARC-Easy", _ALL, hub_rows.labelled()),
    "bigbench": NamedDataset(
        "tasksource/bigbench", None, _NO_TEST, dict.fromkeys(mixture_rows.BIGBENCH, mixture_rows.bigbench)
    ),
    "boolq": NamedDataset("google/boolq", None, _NO_TEST, hub_rows.boolq),
    "commonsense_qa": NamedDataset("tau/commonsense_qa", None, _NO_TEST, hub_rows.labelled()),
    "gsm8k": NamedDataset(
        "openai/gsm8k", "main", ("train", "test"), hub_rows.gsm8k, free_text=True, worked=True
    ),
    "hellaswag": NamedDataset("Rowan/hellaswag", None, _NO_TEST, hub_rows.hellaswag),
    "knowref": NamedDataset("coref-data/knowref_60k_raw", None, _ALL, mixture_rows.knowref),
    "mmlu": NamedDataset("cais/mmlu", "all", ("dev", "validation", "test"), hub_rows.mmlu),
    "multirc": NamedDataset("aps/super_glue", "multirc", _NO_TEST, mixture_rows.multirc),
    "openbookqa": NamedDataset("allenai/openbookqa", "main", _ALL, hub_rows.labelled("question_stem")),
    "piqa": NamedDataset("baber/piqa", None, _NO_TEST, hub_rows.piqa),
    "sciq": NamedDataset("allenai/sciq", None, _ALL, hub_rows.sciq),
    "social_iqa": NamedDataset("lighteval/siqa", None, _NO_TEST, mixture_rows.social_iqa),
    "superglue": NamedDataset("aps/super_glue", None, _NO_TEST, mixture_rows.SUPERGLUE),
    "winogrande": NamedDataset("allenai/winogrande", "winogrande_xl", _NO_TEST, hub_rows.winogrande),
}


def named_dataset(name: str) -> NamedDataset:
    """The dataset of that name. Raises UserError, with a suggestion, where there is none."""
    if name not in NAMED:
        raise UserError(
            f"no dataset is known by the name {name!r}{did_you_mean(name, NAMED)}",
            f"use one of {', '.join(NAMED)}, or OWNER/NAME of another one on the hub, or the path of a file",
        )
    return NAMED[name]


def local_files(root: Path, name: str, split: str) -> tuple[Found, ...]:
    """`root/NAME/SPLIT.*` or `SPLIT-*`. Raises UserError that says what is there when they are not."""
    folder = root / name
    if found := split_files(folder, split):
        return found
    there = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    holds = f"holds {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}"
    seen = f"that folder {holds}" if there else "there is no such folder or it is empty"
    raise UserError(
        f"{folder}: no {split}.jsonl or other file of rows whose name begins with {split}; {seen}",
        "name a split that is there, mend data_root, or set data_root to null to use the hub",
    )


def hub_rows_of(name: str, split: str) -> list[Row]:
    """All rows of a split, downloaded or from the hub's cache.

    Raises UserError for an unknown split or rows without answers, EnvironmentFault when the hub cannot be
    reached or does not have the dataset in a readable form.
    """
    dataset = named_dataset(name)
    if split not in dataset.splits:
        raise UserError(
            f"{name} has no split {split!r}{did_you_mean(split, dataset.splits)}",
            f"use one of {', '.join(dataset.splits)}",
        )
    parts = dataset.convert if isinstance(dataset.convert, Mapping) else {dataset.hub_config: dataset.convert}
    converted: list[tuple[str, Row]] = []
    for config, convert in parts.items():
        origin = f"{dataset.hub_path}{f'/{config}' if len(parts) > 1 else ''} on the hub"
        offline = f"download it elsewhere and give data_root (with {name}/{split}.jsonl in it), or use a path"
        before = f"{config}/" if len(parts) > 1 else ""
        try:
            for place, row in enumerate(_downloaded(name, dataset.hub_path, config, split, origin, offline)):
                if (made := convert(row, place)) is not None:
                    made["id"] = f"{before}{made['id']}"
                    converted.append((f"{origin}, {split} row {place}", made))
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvironmentFault(f"{origin} has other columns than expected: {error!r}", offline) from error
    hidden = sum(row.get("answer") in (None, -1, "") for _, row in converted)
    if 2 * hidden >= len(converted):
        return check_rows(converted, "choose a split whose answers are public")
    mended = f"{name}/{split}.jsonl below data_root, one JSON object on each line"
    return check_rows(converted, f"leave these rows out, or mend them, in a file of your own: {mended}")


def _downloaded(name: str, path: str, config: str | None, split: str, origin: str, fix: str) -> Any:
    # Before `datasets` is imported, which looks once whether there is a network.
    why_unreachable()
    import datasets

    try:
        return datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentFault(f"cannot load {name} from {origin}: {reason}", fix) from error
