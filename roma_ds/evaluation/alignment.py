"""How well routing weights follow the tasks: the geometry of embeddings against the geometry of routing.

Shapes: embeddings [samples, dim], routing [samples, layers, experts], chosen layers only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

METRICS = ("knn_overlap", "cka", "trustworthiness", "mean_sq_distance")


def alignment(
    embeddings: NDArray[np.floating],
    routing: NDArray[np.floating],
    neighbours: int = 3,
    prompts: Sequence[str] | None = None,
    limit: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Agreement of routing weights with task embeddings, each metric a float.

    knn_overlap       share of the k nearest in embedding space that are also among the k nearest in routing
    cka               linear centred kernel alignment, 0 to 1
    trustworthiness   1 when no sample is near in routing that is far in embedding space (Venna and Kaski)
    mean_sq_distance  mean ||r_i - r_j||^2 to the k nearest in embedding space, layers concatenated

    Of samples with equal `prompts` the first counts: copies of a question are nobody's neighbours. Above
    `limit` samples an even choice by `seed` is measured.
    Raises ValueError when shapes do not match, values are not finite, or samples are fewer than 2k + 2.
    """
    count = len(embeddings)
    if embeddings.ndim != 2 or routing.ndim != 3 or len(routing) != count:
        raise ValueError(f"shapes do not match: embeddings {embeddings.shape}, routing {routing.shape}")
    chosen = subsample(distinct(prompts, count), limit, seed)
    if neighbours < 1 or chosen.size < 2 * neighbours + 2:
        raise ValueError(f"{chosen.size} distinct samples are too few for {neighbours} neighbours")
    # Picked before the cast: routing may be a memory map of many gigabytes.
    tasks: Floats = np.asarray(embeddings[chosen], dtype=np.float32)
    weights: Floats = np.asarray(routing[chosen], dtype=np.float32).reshape(chosen.size, -1)
    if not (np.isfinite(tasks).all() and np.isfinite(weights).all()):
        raise ValueError("embeddings or routing weights contain NaN or infinity")
    task_distance, weight_distance = _square_distances(tasks), _square_distances(weights)
    near_task, near_weight = _nearest(task_distance, neighbours), _nearest(weight_distance, neighbours)
    shared = (near_task[:, :, None] == near_weight[:, None, :]).any(axis=2)
    return {
        "knn_overlap": float(shared.mean()),
        "cka": _linear_cka(tasks, weights),
        "trustworthiness": _trustworthiness(task_distance, near_weight),
        "mean_sq_distance": float(np.take_along_axis(weight_distance, near_task, axis=1).mean()),
    }


def distinct(prompts: Sequence[str] | None, count: int) -> NDArray[np.int64]:
    """Ascending positions of the first sample of each prompt; of all samples without prompts."""
    if prompts is None:
        return np.arange(count, dtype=np.int64)
    if len(prompts) != count:
        raise ValueError(f"{count} samples but {len(prompts)} prompts")
    first: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        first.setdefault(prompt, place)
    return np.fromiter(first.values(), dtype=np.int64, count=len(first))


def subsample(positions: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` of the positions, in ascending order, the same for the same seed."""
    if positions.size <= limit:
        return positions
    chosen = np.random.default_rng(seed).choice(positions.size, size=limit, replace=False)
    picked: NDArray[np.int64] = positions[np.sort(chosen)]
    return picked


def _square_distances(points: Floats) -> Floats:
    """[samples, samples] squared Euclidean distances, infinite on the diagonal."""
    centred = points - points.mean(axis=0)
    norms = (centred * centred).sum(axis=1)
    distances: Floats = np.maximum(norms[:, None] + norms[None, :] - 2 * centred @ centred.T, 0.0)
    np.fill_diagonal(distances, np.inf)
    return distances


def _nearest(distances: Floats, count: int) -> NDArray[np.int64]:
    """[samples, count] nearest first; equal distances go by position, so the choice is reproducible."""
    order: NDArray[np.int64] = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order


def _linear_cka(first: Floats, second: Floats) -> float:
    left = (first - first.mean(axis=0)).astype(np.float64)
    right = (second - second.mean(axis=0)).astype(np.float64)
    shared = float(np.square(left.T @ right).sum())
    norm = float(np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right))
    return float(shared / norm) if norm > 0 else 0.0


def _trustworthiness(reference: Floats, near: NDArray[np.int64]) -> float:
    """1 minus the normalised excess rank, in `reference`, of the neighbours found in the other space."""
    samples, count = near.shape
    ranks = np.empty((samples, samples), dtype=np.int64)
    order = np.argsort(reference, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1, samples + 1), order.shape), axis=1)
    excess = np.maximum(np.take_along_axis(ranks, near, axis=1) - count, 0).sum()
    worst = samples * count * (2.0 * samples - 3.0 * count - 1.0) / 2.0
    return float(1.0 - excess / worst)
