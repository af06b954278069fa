"""Pictures of results: accuracy by task and variant, and which options were predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.monitor.plots.canvas import GRID, INK, MUTED, canvas, variant_colour
from roma_ds.monitor.wording import in_order, variant_title


def variants_bar(variants: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy with 95% error bars, a row a task and the average on top, a mark a variant.

    `variants`: variant -> {"tasks": {task: {"accuracy", "stderr", "majority_baseline"}}, "average"}.
    """
    names = in_order([name for name, entry in variants.items() if entry.get("tasks")])
    tasks = list(dict.fromkeys(task for name in names for task in variants[name]["tasks"]))
    rows = ["average", *tasks]
    spread = 0.62 / max(1, len(names))
    row_height = 0.12 + 0.09 * len(names)
    with canvas(path, 9, 1.5 + row_height * len(rows)) as figure:
        axes = figure.subplots()
        for row in range(len(rows)):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color="#f5f7f9", zorder=0)
        for place, name in enumerate(names):
            offset = (place - (len(names) - 1) / 2) * spread
            colour = variant_colour(name, place)
            points = [(0, variants[name].get("average"), _average_error(variants[name]["tasks"]))]
            points += [
                (1 + tasks.index(task), result.get("accuracy"), result.get("stderr"))
                for task, result in variants[name]["tasks"].items()
            ]
            known = [
                (row, 100 * value, 196 * (error or 0)) for row, value, error in points if value is not None
            ]
            axes.errorbar(
                [value for _, value, _ in known],
                [row + offset for row, _, _ in known],
                xerr=[error for _, _, error in known],
                fmt="o",
                color=colour,
                markersize=4.5,
                elinewidth=1.3,
                label=variant_title(name),
            )
        chance = _majority(variants, names, tasks)
        for row, share in chance.items():
            axes.plot([100 * share] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1, linestyle=":")
        if chance:
            axes.plot([], [], color=INK, linewidth=1, linestyle=":", label="most common answer")
        axes.set_yticks(range(len(rows)), rows)
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -1), min(high, 101))
        axes.set_xlabel("accuracy, % (bars: 95%)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def answers_histogram(
    predicted: Mapping[str, Mapping[str, int]], answers: Mapping[str, int], path: Path, options: int = 12
) -> None:
    """Share of each predicted option by variant beside the true answers: an always-"A" model stands out.

    `predicted`: variant -> option -> count; `answers`: option -> count. Beyond `options` the rarest are
    drawn together.
    """
    total: dict[str, int] = {}
    for counts in (answers, *predicted.values()):
        for option, number in counts.items():
            total[option] = total.get(option, 0) + number
    shown = sorted(sorted(total, key=lambda option: -total[option])[:options])
    rest = len(total) > len(shown)
    labels = [*shown, "other"] if rest else shown
    series = {"true answers": answers, **{name: predicted[name] for name in in_order(list(predicted))}}
    width = 0.84 / len(series)
    with canvas(path, 9, 3.6) as figure:
        axes = figure.subplots()
        for place, (name, counts) in enumerate(series.items()):
            shares = _shares(counts, shown, rest)
            positions = [column + (place - (len(series) - 1) / 2) * width for column in range(len(labels))]
            true = name == "true answers"
            axes.bar(
                positions,
                shares,
                width * 0.92,
                color="white" if true else variant_colour(name, place),
                edgecolor=INK if true else "none",
                linewidth=1,
                label=name if true else variant_title(name),
            )
        axes.set_xticks(range(len(labels)), [_short(label) for label in labels])
        axes.set_ylabel("share of answers, %")
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0)
        axes.spines["left"].set_color(GRID)
        axes.spines["bottom"].set_color(MUTED)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _shares(counts: Mapping[str, int], shown: Sequence[str], rest: bool) -> list[float]:
    whole = max(1, sum(counts.values()))
    shares = [100 * counts.get(option, 0) / whole for option in shown]
    return [*shares, 100 - sum(shares)] if rest and counts else [*shares, 0.0] if rest else shares


def _average_error(tasks: Mapping[str, Mapping[str, Any]]) -> float:
    """Standard error of the mean over tasks, tasks taken as independent."""
    errors = [float(task.get("stderr") or 0) for task in tasks.values()]
    return math.sqrt(sum(error * error for error in errors)) / max(1, len(errors))


def _majority(
    variants: Mapping[str, Mapping[str, Any]], names: Sequence[str], tasks: Sequence[str]
) -> dict[int, float]:
    """row -> majority baseline, the average over tasks in row 0."""
    found: dict[int, float] = {}
    for row, task in enumerate(tasks, start=1):
        for name in names:
            share = variants[name]["tasks"].get(task, {}).get("majority_baseline")
            if share is not None:
                found[row] = float(share)
    if found:
        found[0] = sum(found.values()) / len(found)
    return found


def _short(label: str) -> str:
    text = label.strip()
    return text if len(text) <= 14 else text[:13] + "…"
