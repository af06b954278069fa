"""The report of a study: study.json for programs, study.html and table.md for people, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.monitor import markup
from roma_ds.monitor.wording import byte_size, count, duration, p_value, percent, points
from roma_ds.storage.atomic import write_json, write_text
from roma_ds.study.pictures import accuracy_picture, curve_picture, curves_of
from roma_ds.study.plan import slug
from roma_ds.study.results import read_results

Row = Mapping[str, Any]
METRICS = ("knn_overlap", "trustworthiness", "cka", "mean_sq_distance")
HEAD = (
    "variant",
    "accuracy, %",
    "s.e. over seeds",
    "to base, points [95%]",
    "p",
    "to router tuning, points [95%]",
    "p",
)
COSTS = ("variant", "trainable", "training, s", "cell, s", "peak memory", "inference", "perplexity")


def write_study_report(root: Path) -> str:
    """Write report/ of a study; returns the table as Markdown.

    Raises UserError where the study has not run.
    """
    results = read_results(root)
    folder = root / "report"
    rows: dict[str, Row] = results["entries"]
    pictures = [
        ("Accuracy", folder / "accuracy.png", "Every variant; the line is its 95% t interval over seeds.")
    ]
    accuracy_picture(rows, pictures[0][1])
    for title, places in curves_of(rows).items():
        path = folder / f"curve-{slug(title)}.png"
        curve_picture(rows, title, places, path)
        pictures.append((title, path, "Bars: one standard error over seeds; dashed: base and router tuning."))
    write_json(folder / "study.json", results)
    text = markdown(results)
    write_text(folder / "table.md", text)
    write_text(folder / "study.html", page(results, pictures))
    return f"{text}\nreport: {folder / 'study.html'}"


def difference(compared: Row | None) -> tuple[str, str]:
    """The difference with its interval, and the corrected p-value."""
    if not compared:
        return "", ""
    bounds = f"[{points(compared['low'])}, {points(compared['high'])}]"
    mark = "*" if compared["decided"] else ""
    return f"{points(compared['difference'])} {bounds}", p_value(compared["p_holm"]) + mark


def main_cells(name: str, row: Row) -> list[str]:
    """One line of the main table, as HEAD."""
    title = f"{name} (uses test labels)" if row["uses_test_labels"] else name
    error = "–" if row["stderr_over_seeds"] is None else f"{100 * row['stderr_over_seeds']:.2f}"
    compared = row["compared"]
    return [
        title,
        f"{100 * row['accuracy']:.2f}",
        error,
        *difference(compared.get("base")),
        *difference(compared.get("router_tuning")),
    ]


def cost_cells(name: str, row: Row) -> list[str]:
    """One line of the table of costs, as COSTS."""
    cost = row["cost"]
    inference = "–" if cost["inference"] is None else f"{cost['inference']:.2f}x"
    perplexity = "–" if row["perplexity"] is None else f"{row['perplexity']:.3f}"
    return [
        name,
        count(cost["trainable_parameters"]),
        "–" if cost["train_seconds"] is None else f"{cost['train_seconds']:.1f}",
        "–" if cost["seconds"] is None else f"{cost['seconds']:.1f}",
        byte_size(cost["peak_memory_bytes"]),
        inference,
        perplexity,
    ]


def alignment_cells(rows: Mapping[str, Row]) -> list[list[str]]:
    """variant, task, the four metrics, expert load, overlap with base."""
    lines = []
    for name, row in rows.items():
        side = row["side_effects"]
        for task, found in row["alignment"].items():
            if found:
                lines.append(
                    [
                        name,
                        task,
                        *(f"{found[metric]:.4f}" for metric in METRICS),
                        f"{side['expert_load_entropy']:.4f}",
                        percent(side["expert_overlap_with_base"]),
                    ]
                )
    return lines


ALIGNMENT_HEAD = (
    "variant",
    "task",
    "k-NN overlap",
    "trustworthiness",
    "CKA",
    "mean squared distance",
    "load entropy",
    "experts as base, %",
)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    parts = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*parts, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def explained(results: Mapping[str, Any]) -> str:
    """What the numbers of the main table are."""
    comparisons = next(
        (found["comparisons"] for row in results["entries"].values() for found in row["compared"].values()),
        0,
    )
    return (
        f"Mean over tasks {', '.join(results['tasks']['report'])} and seeds "
        f"{', '.join(map(str, results['seeds']))}; {results['questions']:,} questions. Intervals: bootstrap "
        "that redraws seeds and questions. p: the larger of a paired permutation test over questions (each "
        "task weighing the same) and a paired t test over seeds; between two single runs the exact McNemar "
        "test, or that permutation test where tasks differ in size. Corrected by Holm for "
        f"{comparisons} comparisons; * below {results['level']}."
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    rows: dict[str, Row] = results["entries"]
    chosen = [
        f"- {name}: {' '.join(row['chosen'])}, chosen on {', '.join(results['tasks']['select'])}"
        for name, row in rows.items()
        if row["chosen"]
    ]
    parts = [
        _table(HEAD, [main_cells(name, row) for name, row in rows.items()]),
        explained(results) + "\n",
        *(["\n".join(chosen) + "\n"] if chosen else []),
        _table(COSTS, [cost_cells(name, row) for name, row in rows.items()]),
        _table(ALIGNMENT_HEAD, alignment_cells(rows)),
    ]
    return "\n".join(parts)


def page(results: Mapping[str, Any], pictures: Sequence[tuple[str, Path, str]]) -> str:
    """The report as one HTML page."""
    rows: dict[str, Row] = results["entries"]
    strong = [place for place, row in enumerate(rows.values()) if row["variant"] == "roma"]
    settings = [(name, " ".join(row["settings"]) or "as the run config") for name, row in rows.items()]
    trials = [
        [
            name,
            " ".join(trial["point"]),
            f"{100 * sum(trial['accuracy']) / len(trial['accuracy']):.2f}",
            "chosen" if trial["chosen"] else "",
        ]
        for name, found in results["selection"].items()
        for trial in found
    ]
    sections = [
        markup.section(
            "results",
            "Results",
            markup.table(HEAD, [main_cells(name, row) for name, row in rows.items()], strong, dense=True),
            markup.paragraph(explained(results), "muted"),
            *(markup.picture(path, title, caption) for title, path, caption in pictures),
        ),
        markup.section(
            "costs",
            "Costs and side effects",
            markup.table(COSTS, [cost_cells(name, row) for name, row in rows.items()], strong, dense=True),
            markup.paragraph(
                f"Seconds and memory are of one cell, ranks: {results['world_size']}; the shared stages took "
                f"{duration(results['shared_seconds'])}, the whole study {duration(results['seconds'])}. "
                "Inference: tokens through the network for prompt and true answer against the base model's, "
                "a backward pass counted as two forward ones.",
                "muted",
            ),
        ),
        markup.section(
            "alignment",
            "Alignment of routing with the tasks",
            markup.table(ALIGNMENT_HEAD, alignment_cells(rows), dense=True),
        ),
        markup.section(
            "settings",
            "Settings",
            markup.facts(settings),
            *(
                [markup.table(("variant", "setting", "accuracy on selection, %", ""), trials, dense=True)]
                if trials
                else []
            ),
        ),
    ]
    head = "<header><h1>Study</h1></header>\n"
    return markup.document("Study", head + "".join(sections))
