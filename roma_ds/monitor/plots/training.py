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
    ("task loss", ("task_loss",), "linear"),
    ("manifold loss", ("manifold_loss",), "linear"),
    ("lambda", ("lambda",), "linear"),
    ("gradient norms: task —, manifold - -", ("grad_norm_task", "grad_norm_manifold"), "log"),
    ("gradient norm, manifold / task", ("ratio",), "log"),
    ("entropy of expert load, nats", ("expert_load_entropy",), "linear"),
)


def loss_curves(metrics: Mapping[str, Records], path: Path) -> None:
    """Six panels over steps; `metrics`: variant -> records of metrics.jsonl.

    Long curves are drawn pale with their running mean on top. On a logarithmic axis zeros are left out.
    """
    names = in_order(list(metrics))
    with canvas(path, 11, 5.8) as figure:
        panels = figure.subplots(2, 3)
        for axes, (title, keys, scale) in zip(panels.flat, _PANELS, strict=True):
            drawn = False
            for place, name in enumerate(names):
                for key, style in zip(keys, ("-", "--"), strict=False):
                    steps, values = curve(metrics[name], key)
                    if scale == "log":
                        steps, values = steps[values > 0], values[values > 0]
                    if values.size:
                        _draw(axes, steps, values, variant_colour(name, place), style, variant_title(name))
                        drawn = True
            axes.set_title(title)
            axes.grid(visible=True)
            if drawn:
                axes.set_yscale(scale)
            else:
                axes.text(0.5, 0.5, "not logged", ha="center", color=MUTED, transform=axes.transAxes)
                axes.set_yticks([])
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

    `ratio` is grad_norm_manifold / grad_norm_task.
    """
    points = []
    for record in records:
        value = _ratio(record) if key == "ratio" else _number(record.get(key))
        if value is not None and record.get("step") is not None:
            points.append((float(record["step"]), value))
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw(
    axes: Any, steps: NDArray[np.float64], values: NDArray[np.float64], colour: str, style: str, label: str
) -> None:
    window = values.size // 25
    if window >= 2:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, linestyle=style)
        kernel = np.ones(window) / window
        values, steps = np.convolve(values, kernel, "valid"), steps[window - 1 :]
    marker = "o" if values.size == 1 else None
    axes.plot(steps, values, color=colour, linewidth=1.6, linestyle=style, marker=marker, label=label)


def _ratio(record: Mapping[str, Any]) -> float | None:
    task, manifold = _number(record.get("grad_norm_task")), _number(record.get("grad_norm_manifold"))
    return manifold / task if task and manifold is not None else None


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        known = [float(item) for item in value if item is not None]
        return sum(known) / len(known) if known else None
    if value is None or not np.isfinite(float(value)):
        return None
    return float(value)
