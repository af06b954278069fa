"""Picture of which experts serve which task, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.monitor.plots.canvas import MUTED, canvas

Array = NDArray[np.floating]


def routing_heatmap(
    before: Array, after: Array | None, tasks: Sequence[str], layers: Sequence[int], path: Path
) -> None:
    """Mean routing weights [tasks, layers, experts]: a row a task, the layers' experts side by side.

    `layers` are the layer numbers. With `after`, three panels: before, after and the change.
    """
    count, depth, experts = before.shape
    states = [("before", before)]
    if after is not None:
        states += [("after", after), ("change (after − before)", after - before)]
    top = float(max(np.quantile(state, 0.995) for _, state in states[:2]))
    panel_height = 0.75 + max(0.17 * count, 0.6)
    with canvas(path, 11, 0.4 + panel_height * len(states)) as figure:
        panels = np.atleast_1d(figure.subplots(len(states), 1, sharex=True))
        for axes, (title, state) in zip(panels, states, strict=True):
            flat = state.reshape(count, depth * experts)
            if title.startswith("change"):
                bound = float(np.quantile(np.abs(flat), 0.995)) or 1e-6
                colours = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
            else:
                colours = {"cmap": "viridis", "vmin": 0.0, "vmax": top}
            image = axes.imshow(flat, aspect="auto", interpolation="nearest", **colours)
            figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
            axes.set_title(title)
            axes.set_yticks(range(count), [_short(task) for task in tasks], fontsize=8)
            axes.tick_params(length=0)
            line = MUTED if title.startswith("change") else "white"
            for layer in range(1, depth):
                axes.axvline(layer * experts - 0.5, color=line, linewidth=1)
        centres = [layer * experts + (experts - 1) / 2 for layer in range(depth)]
        panels[-1].set_xticks(centres, [f"layer {layer}" for layer in layers])
        if depth > 12:
            panels[-1].tick_params(axis="x", labelrotation=90, labelsize=7)
        panels[-1].set_xlabel(f"the {experts} experts of each layer")


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"
