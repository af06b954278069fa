"""Picture of tasks in embedding space and in routing space, in two dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.evaluation.alignment import subsample
from roma_ds.monitor.plots.canvas import GRID, canvas, task_colour

Array = NDArray[np.floating]
MAX_POINTS = 300
MAX_LABELS = 24


def projection(
    embeddings: Array | None,
    before: Array,
    after: Array | None,
    labels: Sequence[str],
    path: Path,
    seed: int = 0,
) -> None:
    """t-SNE maps of task embeddings [samples, dim] and routing [samples, layers, experts], a point a sample.

    Routing before and after is mapped together, so that positions in the two panels are comparable. At most
    300 samples are drawn; fewer than 30 are mapped by their principal components.
    """
    chosen = subsample(np.arange(len(labels)), MAX_POINTS, seed)
    shown = _legend([labels[place] for place in chosen])
    panels: list[tuple[str, NDArray[np.float64]]] = []
    if embeddings is not None:
        panels.append(("task embeddings", _flat_map(_rows(embeddings, chosen), seed)))
    stacked = [_rows(before, chosen)] + ([_rows(after, chosen)] if after is not None else [])
    mapped = _flat_map(np.concatenate(stacked), seed)
    for title, points in zip(
        ("routing before", "routing after"), np.split(mapped, len(stacked)), strict=False
    ):
        panels.append((title, points))
    bottom = mapped.min(axis=0), mapped.max(axis=0)
    with canvas(path, 3.7 * len(panels), 4.1 + 0.19 * -(-len(set(shown)) // 6)) as figure:
        axes_row = np.atleast_1d(figure.subplots(1, len(panels)))
        for axes, (title, points) in zip(axes_row, panels, strict=True):
            for place, label in enumerate(_order(shown)):
                mine = np.asarray([entry == label for entry in shown])
                colour = "#c9d0d6" if label == "others" else task_colour(place)
                marker = "o" if place < 12 else "^"
                axes.scatter(*points[mine].T, s=11, color=colour, marker=marker, linewidths=0, label=label)
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set(visible=True, color=GRID)
            if title.startswith("routing"):
                margin = 0.04 * (bottom[1] - bottom[0]) + 1e-9
                axes.set_xlim(bottom[0][0] - margin[0], bottom[1][0] + margin[0])
                axes.set_ylim(bottom[0][1] - margin[1], bottom[1][1] + margin[1])
        figure.legend(
            *axes_row[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(6, 2 * len(panels)),
            fontsize=8,
            markerscale=1.8,
            handletextpad=0.2,
        )


def _rows(array: Array, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(array[chosen], dtype=np.float64).reshape(chosen.size, -1)


def _flat_map(points: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[samples, dim] -> [samples, 2]"""
    centred = points - points.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    components = left[:, :50] * scales[:50]
    flat = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))[:, :2]
    if len(points) < 30 or float(np.std(flat)) < 1e-9:
        return flat
    from sklearn.manifold import TSNE

    start = (flat / np.std(flat[:, 0]) * 1e-4).astype(np.float32)
    # The approximate method starts threads that spin while they wait; at this size the exact one is faster.
    mapper = TSNE(
        init=start, method="exact", perplexity=min(30.0, len(points) / 5), max_iter=400, random_state=seed
    )
    mapped: NDArray[np.float64] = mapper.fit_transform(components.astype(np.float32))
    return mapped


def _legend(labels: list[str]) -> list[str]:
    """`labels` with the rarest beyond 24 kinds called others."""
    common = {label for label, _ in Counter(sorted(labels)).most_common(MAX_LABELS)}
    return [label if label in common else "others" for label in labels]


def _order(labels: Sequence[str]) -> list[str]:
    kinds = sorted(set(labels) - {"others"})
    return [*kinds, "others"] if "others" in labels else kinds
