"""The pictures of a study: accuracies of all entries, and a curve for each key that was swept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roma_ds.monitor.plots.canvas import AFTER, BEFORE, INK, MUTED, canvas
from roma_ds.study.results import reference_entries

Rows = Mapping[str, Mapping[str, Any]]


def curves_of(rows: Rows) -> dict[str, list[tuple[str, str]]]:
    """By title, the points of each curve as (label on the axis, entry), in the order of the study."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, row in rows.items():
        if row["curve"]:
            found.setdefault(row["curve"]["title"], []).append((str(row["curve"]["value"]), name))
    return found


def accuracy_picture(rows: Rows, path: Path) -> None:
    """Accuracy of every entry that is no point of a curve, with the interval over seeds."""
    shown = {name: row for name, row in rows.items() if row["curve"] is None}
    names = sorted(shown, key=lambda name: shown[name]["accuracy"])
    with canvas(path, 9.5, 1.2 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        for place, name in enumerate(names):
            row = shown[name]
            colour = MUTED if row["uses_test_labels"] else AFTER if row["variant"] == "roma" else BEFORE
            axes.plot(100 * row["accuracy"], place, "o", color=colour, markersize=8)
            if row["interval_over_seeds"]:
                low, high = (100 * bound for bound in row["interval_over_seeds"])
                axes.plot([low, high], [place, place], color=INK, linewidth=1.4, zorder=1)
        labels = [f"{name} (uses test labels)" if shown[name]["uses_test_labels"] else name for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlabel("accuracy, %; line: 95% t interval over seeds")
        axes.grid(axis="x")
        lowest = min(100 * row["accuracy"] for row in shown.values())
        axes.set_xlim(max(0.0, lowest - 10), 102)
        axes.set_ylim(-0.7, len(names) - 0.3)


def curve_picture(rows: Rows, title: str, points: list[tuple[str, str]], path: Path) -> None:
    """Accuracy along one key, beside base and router tuning."""
    with canvas(path, 7.0, 3.6) as figure:
        axes = figure.subplots()
        places = range(len(points))
        values = [100 * rows[name]["accuracy"] for _, name in points]
        errors = [100 * (rows[name]["stderr_over_seeds"] or 0.0) for _, name in points]
        # Between values without an order there is nothing to interpolate.
        line = "-" if all(map(_is_number, (label for label, _ in points))) else "none"
        axes.errorbar(places, values, yerr=errors, color=AFTER, marker="o", linestyle=line, capsize=3)
        for reference, name in reference_entries(rows).items():
            axes.axhline(100 * rows[name]["accuracy"], color=MUTED, linestyle="--", linewidth=1)
            axes.annotate(
                reference.replace("_", " "),
                (1.0, 100 * rows[name]["accuracy"]),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color=MUTED,
                fontsize=8,
            )
        axes.set_xticks(places, [label for label, _ in points])
        axes.set_title(title)
        axes.set_ylabel("accuracy, %; bars: s.e. over seeds")
        axes.grid(axis="y")


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
