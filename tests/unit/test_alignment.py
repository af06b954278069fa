"""Alignment metrics against scikit-learn, brute force and known geometries."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness

from roma_ds.evaluation.alignment import METRICS, alignment, distinct, subsample


def _clustered(samples: int, noise: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Embeddings [samples, 8] of 4 tasks; routing [samples, 2, 4] that follows the task up to `noise`."""
    rng = np.random.default_rng(seed)
    task = rng.integers(4, size=samples)
    embeddings = np.eye(8)[task] + rng.normal(scale=0.15, size=(samples, 8))
    logits = np.repeat(4 * np.eye(4)[task][:, None], 2, axis=1)
    logits = logits + noise * rng.normal(size=(samples, 2, 4))
    routing = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return embeddings.astype(np.float32), routing.astype(np.float16)


def test_routing_equal_to_the_embedding_is_perfectly_aligned() -> None:
    embeddings, _ = _clustered(60, 0.0)
    result = alignment(embeddings, 2 * embeddings.reshape(60, 2, 4) + 1, neighbours=3)
    assert tuple(result) == METRICS
    assert result["knn_overlap"] == 1.0
    assert result["cka"] == pytest.approx(1.0, abs=1e-5)
    assert result["trustworthiness"] == 1.0


def test_noise_lowers_every_metric_and_raises_the_distance() -> None:
    good, bad = (alignment(*_clustered(300, noise)) for noise in (0.3, 6.0))
    for metric in ("knn_overlap", "cka", "trustworthiness"):
        assert good[metric] > bad[metric], metric
    assert good["mean_sq_distance"] < bad["mean_sq_distance"]


def test_unrelated_routing_is_at_chance() -> None:
    embeddings, _ = _clustered(400, 0.0)
    routing = np.random.default_rng(5).random((400, 5, 16))
    result = alignment(embeddings, routing, neighbours=5)
    assert result["knn_overlap"] == pytest.approx(5 / 399, abs=0.02)
    assert result["trustworthiness"] == pytest.approx(0.5, abs=0.05)
    assert result["cka"] < 0.15


def test_trustworthiness_is_that_of_scikit_learn() -> None:
    embeddings, routing = _clustered(120, 2.0)
    flat = routing.reshape(120, -1).astype(np.float64)
    expected = trustworthiness(embeddings, flat, n_neighbors=4)
    assert alignment(embeddings, routing, neighbours=4)["trustworthiness"] == pytest.approx(
        expected, abs=2e-4
    )


def test_distance_to_embedding_neighbours_by_hand() -> None:
    embeddings = np.array([[0.0], [1.0], [10.0], [11.5]], dtype=np.float32)
    routing = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]], dtype=np.float32)[:, None, :]
    result = alignment(embeddings, routing, neighbours=1)
    assert result["mean_sq_distance"] == pytest.approx((2 + 2 + 0 + 0) / 4)


def test_copies_of_a_prompt_count_once() -> None:
    embeddings, routing = _clustered(50, 1.0)
    twice = np.concatenate([embeddings, embeddings]), np.concatenate([routing, routing])
    prompts = [f"question {number}" for number in range(50)]
    assert alignment(*twice, prompts=prompts * 2) == alignment(embeddings, routing)
    assert distinct(["a", "b", "a"], 3).tolist() == [0, 1]


def test_large_inputs_are_subsampled_the_same_way_each_time() -> None:
    embeddings, routing = _clustered(500, 1.0)
    assert alignment(embeddings, routing, limit=100) == alignment(embeddings, routing, limit=100)
    positions = np.arange(500)
    chosen = subsample(positions, 100, seed=0)
    assert len(set(chosen.tolist())) == 100 and chosen.tolist() == sorted(chosen.tolist())
    assert chosen.tolist() != subsample(positions, 100, seed=1).tolist()
    assert subsample(positions, 500, seed=0) is positions


def test_constant_routing_has_no_kernel_alignment() -> None:
    embeddings, routing = _clustered(30, 1.0)
    assert alignment(embeddings, np.ones_like(routing))["cka"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, r: (e[:-1], r), "shapes do not match"),
        (lambda e, r: (e, r.reshape(len(r), -1)), "shapes do not match"),
        (lambda e, r: (e[:7], r[:7]), "too few"),
        (lambda e, r: (e * np.nan, r), "NaN"),
    ],
)
def test_unusable_inputs_are_named(change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        alignment(*change(*_clustered(20, 1.0)))
