"""The numbers of a study: means, intervals, tests and costs of every entry, from the files of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.evaluation.comparison_tests import LEVEL, Compared, compare, holm
from roma_ds.evaluation.uncertainty import stderr, t_interval
from roma_ds.storage.atomic import read_json, read_parquet

REFERENCES = ("base", "router_tuning")


@dataclass(frozen=True)
class Outcomes:
    """Answers of one entry to the reported questions."""

    correct: NDArray[np.bool_]
    """[seeds, questions]"""
    tasks: tuple[str, ...]
    """[questions]"""
    ids: tuple[str, ...]
    seeded: bool

    def over(self, seeds: int) -> NDArray[np.bool_]:
        """[seeds, questions]; where the seed changes nothing the one run stands for all."""
        return np.repeat(self.correct, seeds, axis=0) if len(self.correct) == 1 else self.correct


def read_results(root: Path) -> dict[str, Any]:
    """Everything that study.json holds. Raises UserError where the study has not run."""
    facts = read_json(root / "cells.json")
    report: list[str] = facts["tasks"]["report"]
    entries: dict[str, list[dict[str, Any]]] = {}
    for cell in facts["cells"]:
        entries.setdefault(cell["entry"], []).append(cell)
    rows: dict[str, dict[str, Any]] = {}
    outcomes: dict[str, Outcomes] = {}
    for name, cells in entries.items():
        records = [_record(root / cell["folder"]) for cell in cells]
        outcomes[name] = _outcomes([root / cell["folder"] for cell in cells], report, cells[0]["seeded"])
        rows[name] = _row(cells, records, outcomes[name], report)
    _add_comparisons(rows, outcomes)
    chosen = root / "chosen.json"
    return {
        **{key: facts[key] for key in ("tasks", "seeds", "world_size", "packages", "shared_seconds")},
        "questions": len(next(iter(outcomes.values())).ids),
        "seconds": round(facts["shared_seconds"] + _cell_seconds(root, facts), 1),
        "selection": read_json(chosen) if chosen.exists() else {},
        "level": LEVEL,
        "entries": rows,
    }


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "cell.stage.json")["extra"]
    return found


def _cell_seconds(root: Path, facts: Mapping[str, Any]) -> float:
    cells = [*facts["cells"], *facts["selection"]]
    return sum(float(_record(root / cell["folder"])["seconds"]) for cell in cells)


def _outcomes(folders: Sequence[Path], report: Sequence[str], seeded: bool) -> Outcomes:
    correct, keys = [], None
    for folder in folders:
        columns = read_parquet(folder / "outcome.parquet")
        kept = [place for place, task in enumerate(columns["task"]) if task in report]
        mine = [(columns["task"][place], columns["id"][place]) for place in kept]
        if keys is not None and mine != keys:
            raise UserError(f"{folder} answers other questions than its sisters", "delete it and rerun")
        keys = mine
        correct.append([bool(columns["correct"][place]) for place in kept])
    assert keys is not None
    return Outcomes(
        np.array(correct, np.bool_), tuple(task for task, _ in keys), tuple(key for _, key in keys), seeded
    )


def _row(
    cells: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    outcomes: Outcomes,
    report: Sequence[str],
) -> dict[str, Any]:
    labels = np.array(outcomes.tasks)
    by_task = {task: outcomes.correct[:, labels == task].mean(axis=1) for task in report}
    averages = [float(value) for value in np.mean(list(by_task.values()), axis=0)]
    several = len(averages) > 1
    interval = t_interval(averages) if several else None
    first = cells[0]
    return {
        **{key: first[key] for key in ("variant", "description", "kind", "uses_test_labels", "seeded")},
        "settings": first["overrides"],
        "chosen": first["point"],
        "curve": first["curve"],
        "accuracy": float(np.mean(averages)),
        "by_seed": averages,
        "stderr_over_seeds": stderr(averages) if several else None,
        "interval_over_seeds": [interval.low, interval.high] if interval else None,
        "stderr_over_questions": stderr(outcomes.correct.mean(axis=0)),
        "tasks": {task: float(values.mean()) for task, values in by_task.items()},
        "cost": {
            "train_seconds": _mean(records, "train_seconds"),
            "seconds": _mean(records, "seconds"),
            "processor_seconds": _mean(records, "processor_seconds"),
            "peak_memory_bytes": _most(records, "peak_memory_bytes"),
            "trainable_parameters": _mean(records, "trainable_parameters"),
            "inference": _mean(records, "inference") if first["variant"] != "base" else 1.0,
        },
        "perplexity": _mean(records, "perplexity"),
        "side_effects": _means([record.get("side_effects") or {} for record in records]),
        "alignment": {
            task: _means([_numbers((record.get("alignment") or {}).get(task)) for record in records])
            for task in dict.fromkeys(task for record in records for task in (record.get("alignment") or {}))
        },
        "facts": {
            key: records[0][key]
            for key in (
                "procedure",
                "oracle",
                "steps_taken",
                "own_share_chosen",
                "products",
                "rank",
                "experts",
                "virtual_tokens",
                "matched_to_routers",
                "examples",
                "truncated",
                "unfinished",
                "unread",
                "merges",
            )
            if key in records[0]
        },
    }


def _numbers(found: Any) -> dict[str, float]:
    return dict(found) if isinstance(found, Mapping) else {}


def _known(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(record[key]) for record in records if record.get(key) is not None]


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = _known(records, key)
    return statistics.fmean(values) if values else None


def _most(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return max(_known(records, key), default=None)


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    return {key: _mean(parts, key) for key in dict.fromkeys(key for part in parts for key in part)}


def reference_entries(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By reference, the entry that is it: the first one of that variant outside a curve."""
    found: dict[str, str] = {}
    for name, row in rows.items():
        if row["variant"] in REFERENCES and row["curve"] is None:
            found.setdefault(row["variant"], name)
    return found


def _add_comparisons(rows: dict[str, dict[str, Any]], outcomes: Mapping[str, Outcomes]) -> None:
    """Every entry against base and router tuning; p-values corrected for all of these together."""
    references = reference_entries(rows)
    found: list[tuple[str, str, Compared]] = []
    for name in rows:
        rows[name]["compared"] = {}
        for reference, other in references.items():
            if name != other and not (reference == "router_tuning" and rows[name]["variant"] == "base"):
                found.append((name, reference, _compared(outcomes[name], outcomes[other])))
    for (name, reference, result), adjusted in zip(
        found, holm([result.p_value for _, _, result in found]), strict=True
    ):
        rows[name]["compared"][reference] = {
            "difference": result.difference.estimate,
            "low": result.difference.low,
            "high": result.difference.high,
            "p_questions": result.p_questions,
            "p_seeds": result.p_seeds,
            "p_value": result.p_value,
            "p_holm": adjusted,
            "comparisons": len(found),
            "decided": adjusted < LEVEL,
        }


def _compared(ours: Outcomes, theirs: Outcomes) -> Compared:
    if ours.ids != theirs.ids or ours.tasks != theirs.tasks:
        raise UserError("two entries answered different questions", "rerun the study")
    seeds = max(len(ours.correct), len(theirs.correct))
    trained = ours.seeded or theirs.seeded
    groups = ours.tasks if len(set(ours.tasks)) > 1 else None
    return compare(ours.over(seeds), theirs.over(seeds), groups, trained)
