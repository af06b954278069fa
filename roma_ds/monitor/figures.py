"""Which pictures a run has: each drawn from the run folder into a PNG file, or left out with a note."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.evaluation.alignment import subsample
from roma_ds.monitor import plots
from roma_ds.monitor.comparison import option_label
from roma_ds.monitor.run_folder import Run

ROUTING_SAMPLES = 4000
"""Routing pictures are means over at most this many evaluation samples."""


@dataclass(frozen=True)
class Picture:
    """One PNG file of the report."""

    path: Path
    title: str
    caption: str

    @property
    def name(self) -> str:
        """File name without its ending; also the tag in TensorBoard and the anchor in the report."""
        return self.path.stem


@dataclass(frozen=True)
class RoutingPair:
    """Routing weights [samples, moe layers, experts] before and after, float32, with labels [samples]."""

    before: NDArray[np.float32]
    after: NDArray[np.float32] | None
    embeddings: NDArray[np.float32] | None
    labels: list[str]
    numbers: list[int]
    """layer numbers of the layer axis"""
    chosen: list[int]
    """positions on the layer axis of the trained layers"""


def draw_all(run: Run, folder: Path) -> tuple[dict[str, Picture], list[str]]:
    """Draw every picture that `run` has the data for into `folder`.

    Returns the pictures by name and a note for each one left out.
    """
    drawers: tuple[Callable[[Run, Path], Iterator[Picture | str]], ...] = (
        _accuracy,
        _answers,
        _training,
        _routing,
    )
    results = [result for drawer in drawers for result in drawer(run, folder)]
    pictures = {result.name: result for result in results if isinstance(result, Picture)}
    return pictures, [result for result in results if isinstance(result, str)]


def routing_pair(run: Run) -> RoutingPair | str:
    """Routing of the base model and of RoMA on the evaluation samples, or why there is none."""
    base, tuned = run.variants.get("base"), run.variants.get("roma")
    if base is None or base.routing is None or base.routing.ndim != 3:
        return "no routing weights of the base model on the evaluation samples: no routing pictures"
    count, depth, _ = base.routing.shape
    labels = run.labels()
    if len(labels) != count:
        return f"data/eval.parquet has {len(labels)} rows, the routing weights {count}: no routing pictures"
    rows = subsample(np.arange(count), ROUTING_SAMPLES, seed=0)
    after = None
    if tuned is not None and tuned.routing is not None and tuned.routing.shape == base.routing.shape:
        after = np.asarray(tuned.routing[rows], dtype=np.float32)
    embeddings = None
    if run.embeddings is not None and len(run.embeddings) == count:
        embeddings = np.asarray(run.embeddings[rows], dtype=np.float32)
    before = np.asarray(base.routing[rows], dtype=np.float32)
    for array in (before, after, embeddings):
        if array is not None and not np.isfinite(array).all():
            return "routing weights or embeddings contain NaN or infinity: no routing pictures"
    shown = [labels[row] for row in rows]
    if len(set(shown)) == 1 and embeddings is not None:
        shown = clusters(embeddings)
    return RoutingPair(
        before,
        after,
        embeddings,
        shown,
        run.moe_layers(depth),
        run.chosen_layers(depth),
    )


def clusters(embeddings: NDArray[np.float32], kinds: int = 12) -> list[str]:
    """A cluster name for each of the embeddings [samples, dim], to show where there is only one task."""
    from scipy.cluster.vq import kmeans2

    if len(embeddings) < 5 * kinds:
        return ["all"] * len(embeddings)
    _, found = kmeans2(embeddings.astype(np.float64), kinds, minit="++", seed=0)
    return [f"cluster {place + 1:02d}" for place in found]


def _accuracy(run: Run, folder: Path) -> Iterator[Picture | str]:
    if not run.variants:
        yield "no variant was evaluated: no picture of accuracies"
        return
    path = folder / "variants.png"
    plots.variants_bar({name: variant.result for name, variant in run.variants.items()}, path)
    yield Picture(
        path,
        "Accuracy by task",
        "Accuracy of every variant with its 95% interval (1.96 standard errors); the dotted mark is the "
        "accuracy of always giving the most common answer.",
    )


def _answers(run: Run, folder: Path) -> Iterator[Picture | str]:
    predicted: dict[str, dict[str, int]] = {}
    answers: dict[str, int] = {}
    for name, variant in run.variants.items():
        columns = variant.samples or {}
        counts = Counter(option_label(place) for place in columns.get("predicted", []) if place >= 0)
        if counts:
            predicted[name] = dict(counts)
            answers = dict(Counter(option_label(place) for place in columns["answer"] if place >= 0))
    if not predicted:
        yield "no predicted options: no histogram of answers"
        return
    path = folder / "answers.png"
    plots.answers_histogram(predicted, answers, path)
    yield Picture(
        path,
        "Predicted options",
        "Which option (A = the first one offered) each variant picks, over all tasks, beside the true "
        "answers. A variant that nearly always picks one option has learned a habit, not the tasks.",
    )


def _training(run: Run, folder: Path) -> Iterator[Picture | str]:
    if not run.metrics:
        yield "no metrics.jsonl: no training curves"
        return
    path = folder / "training.png"
    plots.loss_curves(run.metrics, path)
    yield Picture(
        path,
        "Curves",
        "Both loss terms, the weight lambda of the manifold term, and the gradient norms of the two terms "
        "with their ratio; pale lines are single log steps, strong ones their running mean.",
    )


def _routing(run: Run, folder: Path) -> Iterator[Picture | str]:
    pair = routing_pair(run)
    if isinstance(pair, str):
        yield pair
        return
    if pair.after is None:
        yield "no routing weights of RoMA on the evaluation samples: routing is shown before training only"
    before, after = pair.before, pair.after
    path = folder / "expert_load.png"
    plots.expert_load(before.mean(axis=0), None if after is None else after.mean(axis=0), pair.numbers, path)
    yield Picture(
        path,
        "Expert load",
        "Mean routing weight of every expert at the last prompt token over the evaluation samples, and the "
        "entropy of that load: a model that sends everything to few experts moves to the left.",
    )
    chosen = pair.chosen
    tasks = sorted(set(pair.labels))
    labels = np.asarray(pair.labels)
    by_task = [
        np.stack([state[labels == task].mean(axis=0)[chosen] for task in tasks])
        for state in (before, after)
        if state is not None
    ]
    path = folder / "routing.png"
    numbers = [pair.numbers[place] for place in chosen]
    plots.routing_heatmap(by_task[0], by_task[1] if len(by_task) > 1 else None, tasks, numbers, path)
    yield Picture(
        path,
        "Routing by task",
        "Mean routing weights of each task in the trained layers. Rows that look alike are tasks that the "
        "routers treat alike.",
    )
    path = folder / "projection.png"
    tuned = None if after is None else after[:, chosen]
    plots.projection(pair.embeddings, before[:, chosen], tuned, pair.labels, path)
    yield Picture(
        path,
        "Tasks in embedding space and in routing space",
        "t-SNE maps, one point an evaluation sample, coloured by skill or task (by cluster of the embeddings "
        "where there is one task only). Routing before and after share one map. RoMA aims at routing where "
        "samples near as tasks are near as well.",
    )
