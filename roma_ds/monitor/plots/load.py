"""Picture of how the routers spread their weight over experts, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.monitor.plots.canvas import AFTER, BEFORE, canvas

Array = NDArray[np.floating]


def expert_load(before: Array, after: Array | None, layers: Sequence[int], path: Path) -> None:
    """Mean routing weight of each expert [layers, experts] and the entropy of that load by layer.

    `layers` are the layer numbers of the rows. Without `after` only the left half is drawn.
    """
    rows, experts = before.shape
    states = {"before": before} if after is None else {"before": before, "after": after}
    maps = len(states) + (after is not None)
    with canvas(path, 11, max(2.9, 1.7 + 0.17 * rows)) as figure:
        panels = figure.subplots(1, maps + 1, width_ratios=[1.0] * maps + [0.9])
        top = float(max(np.quantile(state, 0.995) for state in states.values()))
        for axes, (name, state) in zip(panels, states.items(), strict=False):
            image = axes.imshow(
                state, aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest"
            )
            axes.set_title(f"load {name}")
        figure.colorbar(image, ax=list(panels[: len(states)]), location="bottom", shrink=0.6, aspect=30)
        if after is not None:
            change = after - before
            bound = float(np.quantile(np.abs(change), 0.995)) or 1e-6
            image = panels[2].imshow(
                change, aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest"
            )
            panels[2].set_title("change")
            figure.colorbar(image, ax=panels[2], location="bottom", shrink=0.9, aspect=18)
        for axes in panels[:maps]:
            axes.set_xlabel("expert")
            ticks = range(0, rows, max(1, rows // 12))
            axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
        panels[0].set_ylabel("layer")
        axes = panels[-1]
        for (name, state), colour in zip(states.items(), (BEFORE, AFTER), strict=False):
            style = "--" if name == "before" else "-"
            axes.plot(
                load_entropy(state), range(rows), style, color=colour, marker="o", markersize=4, label=name
            )
        limit = float(np.log(experts))
        lowest = min(float(load_entropy(state).min()) for state in states.values())
        # The axis starts well below an even load, so that a small change looks small.
        axes.set_xlim(min(lowest - 0.05 * limit, 0.7 * limit), 1.03 * limit)
        axes.axvline(limit, color="#c2444f", linewidth=1, linestyle=":", label="even load")
        axes.set_yticks(range(0, rows, max(1, rows // 12)))
        axes.set_yticklabels([str(layers[tick]) for tick in range(0, rows, max(1, rows // 12))])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_title("entropy of load, nats")
        axes.grid(axis="x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8, columnspacing=1)


def load_entropy(load: Array) -> NDArray[np.float64]:
    """[layers, experts] mean routing weights -> entropy in nats [layers]; even load gives log(experts)."""
    share = np.asarray(load, dtype=np.float64)
    share = share / share.sum(axis=1, keepdims=True)
    entropy: NDArray[np.float64] = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)
    return entropy
