"""Pictures are real PNG files that show something, for ordinary and for odd inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from roma_ds.baselines.variants import TRAINED
from roma_ds.evaluation.results import AS_SERVED
from roma_ds.monitor import plots
from roma_ds.monitor.plots.canvas import variant_colour
from roma_ds.monitor.plots.load import load_entropy
from roma_ds.monitor.plots.training import curve


def _assert_picture(path: Path) -> NDArray[np.float32]:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    assert pixels.var() > 1e-4
    assert min(pixels.shape[:2]) > 200
    return pixels


def _routing(*shape: int) -> NDArray[np.float64]:
    weights = np.random.default_rng(sum(shape)).random(shape)
    return weights / weights.sum(-1, keepdims=True)


def _result(accuracy: float, tasks: int = 2) -> dict[str, object]:
    entry = {"n": 50, "accuracy": accuracy, "stderr": 0.05, "majority_baseline": 0.3}
    return {"tasks": {f"task {n}": entry for n in range(tasks)}, "average": accuracy}


def test_variants_bar(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "variants.png"
    plots.variants_bar({"roma": _result(0.8), "base": _result(0.7), "lora": _result(0.75, 3)}, path)
    _assert_picture(path)
    bare = {"base": {"tasks": {"free text": {"accuracy": 0.5, "stderr": None}}, "average": None}}
    plots.variants_bar(bare, path)
    _assert_picture(path)


def test_answers_histogram_groups_rare_options(tmp_path: Path) -> None:
    path = tmp_path / "answers.png"
    plots.answers_histogram({"base": {"A": 97, "B": 3}}, {"A": 30, "B": 30, "C": 40}, path)
    _assert_picture(path)
    many = {f"a rather long option {n}": n + 1 for n in range(40)}
    plots.answers_histogram({"base": many, "roma": {}}, many, path)
    _assert_picture(path)


def test_loss_curves(tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    records = [
        {
            "step": n,
            "task_loss": 1 / n,
            "manifold_loss": 0.4,
            "lambda": 1,
            "grad_norm_task": 10.0 ** (-n / 40),
        }
        for n in range(1, 120)
    ]
    plots.loss_curves({"roma": records, "router_tuning": records[:1]}, path)
    _assert_picture(path)
    plots.loss_curves({"roma": [{"step": 1}]}, path)
    _assert_picture(path)


def test_curve_skips_what_is_no_number() -> None:
    records = [
        {"step": 1, "loss": 2.0, "lambda": 2.0, "grad_norm_task": 0.5, "grad_norm_manifold": 0.1},
        {"step": 2, "loss": None, "grad_norm_task": 0.0, "grad_norm_manifold": 0.1},
        {"step": 3, "loss": float("nan")},
        {"loss": 1.0},
        {"step": 4, "loss": [1.0, None, 2.0]},
        {"step": 5, "loss": {"3": 4.0}},
    ]
    steps, values = curve(records, "loss")
    assert steps.tolist() == [1, 4, 5] and values.tolist() == [2.0, 1.5, 4.0]
    assert curve(records, "ratio")[1].tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("layers", [1, 6, 48])
def test_expert_load(tmp_path: Path, layers: int) -> None:
    path = tmp_path / "load.png"
    plots.expert_load(_routing(layers, 16), _routing(layers, 16)[:, ::-1], range(layers), path)
    _assert_picture(path)
    plots.expert_load(_routing(layers, 16), None, range(layers), path)
    _assert_picture(path)


def test_entropy_of_load() -> None:
    even, single = np.full((1, 8), 1 / 8), np.eye(8)[:1]
    assert load_entropy(np.concatenate([even, single])).tolist() == pytest.approx([np.log(8), 0.0])


@pytest.mark.parametrize("shape", [(1, 1, 4), (24, 5, 16), (8, 16, 64)])
def test_routing_heatmap(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    path = tmp_path / "routing.png"
    tasks = [f"a task with a name that is far too long {n}" for n in range(shape[0])]
    plots.routing_heatmap(_routing(*shape), _routing(*shape) ** 1.1, tasks, range(shape[1]), path)
    _assert_picture(path)
    plots.routing_heatmap(_routing(*shape), None, tasks, range(shape[1]), path)
    _assert_picture(path)


def test_an_unchanged_routing_is_drawn_as_no_change(tmp_path: Path) -> None:
    same = _routing(3, 2, 8)
    plots.routing_heatmap(same, same, ["a", "b", "c"], [0, 1], tmp_path / "same.png")
    _assert_picture(tmp_path / "same.png")


@pytest.mark.parametrize(("samples", "kinds"), [(6, 2), (90, 3), (450, 30)])
def test_projection(tmp_path: Path, samples: int, kinds: int) -> None:
    path = tmp_path / "projection.png"
    labels = [f"kind {n % kinds}" for n in range(samples)]
    embeddings = np.random.default_rng(0).normal(size=(samples, 7))
    routing = _routing(samples, 2, 4)
    plots.projection(embeddings, routing, routing[::-1], labels, path)
    first = _assert_picture(path)
    plots.projection(embeddings, routing, routing[::-1], labels, path)
    assert (imread(path) == first).all()
    plots.projection(None, np.zeros_like(routing), None, labels, path)
    _assert_picture(path)


def test_every_variant_of_a_run_has_a_colour_of_its_own() -> None:
    """By name: what else a picture shows does not change it."""
    names = [*TRAINED, AS_SERVED, "base"]
    assert len({variant_colour(name) for name in names}) == len(names)
    assert all(variant_colour(name, 0) == variant_colour(name, 3) for name in names)
