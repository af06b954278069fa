"""Picture of training: losses, lambda, gradient norms of both terms and their ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roma_ds.monitor.plots.canvas import MUTED, canvas, variant_colour
from roma_ds.monitor.wording import in_order, variant_title

Records = Sequence[Mapping[str, Any]]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

_PANELS = (
    ("task loss", ("task_loss",)),
    ("manifold loss", ("manifold_loss",)),
    ("lambda", ("lambda",)),
    ("gradient: task —  manifold - -", ("grad_norm_task", "grad_norm_manifold")),
    ("gradient: lambda × manifold / task", ("ratio",)),
    ("expert load entropy, 1 = even", ("expert_load_entropy",)),
)


def loss_curves(metrics: Mapping[str, Records], path: Path) -> None:
    """Six panels over steps; `metrics`: variant -> records of metrics.jsonl.

    Long curves are drawn pale with their running mean on top. Gradient norms of zero (lambda 0) are left out.
    """
    names = in_order(list(metrics))
    with canvas(path, 11, 5.8) as figure:
        panels = figure.subplots(2, 3)
        for axes, (title, keys) in zip(panels.flat, _PANELS, strict=True):
            drawn: list[NDArray[np.float64]] = []
            for place, name in enumerate(names):
                for key, style in zip(keys, ("-", "--"), strict=False):
                    steps, values = curve(metrics[name], key)
                    if title.startswith("gradient"):
                        steps, values = steps[values > 0], values[values > 0]
                    if values.size:
                        smooth = key != "lambda"
                        _draw(
                            axes,
                            steps,
                            values,
                            variant_colour(name, place),
                            style,
                            variant_title(name),
                            smooth,
                        )
                        drawn.append(values)
            axes.set_title(title)
            axes.grid(visible=True)
            if not drawn:
                axes.text(0.5, 0.5, "not logged", ha="center", color=MUTED, transform=axes.transAxes)
                axes.set_yticks([])
            elif title.startswith("gradient"):
                everything = np.concatenate(drawn)
                if everything.max() > 30 * everything.min():
                    axes.set_yscale("log")
                else:
                    axes.set_ylim(bottom=0)
        for axes in panels[1]:
            axes.set_xlabel("step")
        handles: dict[str, Any] = {}
        for axes in panels.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)


def curve(records: Records, key: str) -> Curve:
    """(steps, values) of one key, points without a finite number left out; lists count by their mean.

    `ratio` is lambda * grad_norm_manifold / grad_norm_task, the share that the step sees.
    """
    points = []
    for record in records:
        value = _ratio(record) if key == "ratio" else _number(record.get(key))
        if value is not None and record.get("step") is not None:
            points.append((float(record["step"]), value))
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw(
    axes: Any,
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    colour: str,
    style: str,
    label: str,
    smooth: bool,
) -> None:
    window = values.size // 25 if smooth else 1
    if window >= 2:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, linestyle=style)
        kernel = np.ones(window) / window
        values, steps = np.convolve(values, kernel, "valid"), np.convolve(steps, kernel, "valid")
    marker = "o" if values.size == 1 else None
    axes.plot(steps, values, color=colour, linewidth=1.6, linestyle=style, marker=marker, label=label)


def _ratio(record: Mapping[str, Any]) -> float | None:
    task, manifold = _number(record.get("grad_norm_task")), _number(record.get("grad_norm_manifold"))
    weight = _number(record.get("lambda", 1.0))
    return weight * manifold / task if task and manifold is not None and weight is not None else None


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        known = [float(item) for item in value if item is not None]
        return sum(known) / len(known) if known else None
    if value is None or not np.isfinite(float(value)):
        return None
    return float(value)
