"""Tests of one variant against another over several seeds on the same questions, and their correction.

Outcomes are arrays [seeds, samples], bool or float, of two variants in the same order: a seed of one is
paired with the same seed of the other, a sample with itself. Every function is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from roma_ds.evaluation.uncertainty import Interval, mcnemar_exact, paired_t

Floats = NDArray[np.float64]
DRAWS = 10_000
LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """One variant minus a reference, as shares (0.01 is one point)."""

    difference: Interval
    """Mean over seeds and samples, or over groups of these, with the bootstrap interval that redraws both."""
    p_questions: float
    """Paired permutation test of that mean over samples, each with its mean difference over seeds; with one
    seed the exact McNemar test where outcomes are right or wrong and no group is larger than another."""
    p_seeds: float | None
    """Paired t test over seeds; None for a single seed, and where the same run stands for all of them."""
    seeds: int
    samples: int

    @property
    def p_value(self) -> float:
        """The larger of the two: a difference must hold over new questions and over new trainings."""
        return max(self.p_questions, self.p_seeds or 0.0)


def permutation_test(difference: ArrayLike, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value that paired differences [samples] are symmetric around zero, by flipping signs.

    Exact where there are no more than `draws` ways to flip, else from that many random ones (the observed one
    counted in, so that p is never 0). Raises ValueError when there is no sample.
    """
    values = np.asarray(difference, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a non-empty vector of differences, got shape {values.shape}")
    # Samples that both answered alike stay zero whatever the sign.
    values = values[values != 0]
    if values.size < 2:
        # A single sign: both ways to flip it are as extreme as what was seen.
        return 1.0
    found = stats.permutation_test(
        (values,),
        lambda flipped, axis: flipped.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws - 1,
        batch=max(1, 2_000_000 // values.size),
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, found.pvalue))


def group_weights(groups: Sequence[str] | None, samples: int) -> Floats:
    """float64 [samples]: weighed by it, a mean over samples is that over groups; 1 where these are equal."""
    if groups is None:
        return np.ones(samples)
    _, places, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    weights: Floats = samples / (counts.size * counts[places].astype(np.float64))
    return weights


def question_test(
    first: ArrayLike, second: ArrayLike, groups: Sequence[str] | None = None, draws: int = DRAWS
) -> float:
    """Two-sided p-value that two runs [samples] answer alike, on average over groups.

    The exact McNemar test where outcomes are right or wrong and every sample weighs the same, else the paired
    permutation test with each group weighing the same, as in the average that it is about.
    """
    ours, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    weights = group_weights(groups, ours.size)
    binary = bool(np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all())
    if binary and np.allclose(weights, 1):
        return mcnemar_exact(ours, theirs).p_value
    return permutation_test((ours - theirs) * weights, draws)


def two_way_bootstrap(
    difference: ArrayLike,
    groups: Sequence[str] | None = None,
    draws: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of differences [seeds, samples], redrawing seeds and samples alike.

    With `groups` (the task of each sample) the statistic is the mean over groups, and samples are redrawn
    within theirs. A single seed stays. Raises ValueError when there is no sample.
    """
    values = np.atleast_2d(np.asarray(difference, np.float64))
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected differences [seeds, samples], got shape {values.shape}")
    seeds, samples = values.shape
    labels = np.asarray(groups if groups is not None else np.zeros(samples, np.int8))
    if labels.shape != (samples,):
        raise ValueError(f"{samples} samples but {labels.size} groups")
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    drawn, estimate, names = np.zeros(draws), 0.0, np.unique(labels)
    for name in names:
        member = values[:, labels == name]
        count = member.shape[1]
        estimate += float(member.mean()) / names.size
        for start in range(0, draws, 200):
            part = of_seeds[start : start + 200]
            of_samples = rng.multinomial(count, np.full(count, 1 / count), size=len(part)) / count
            drawn[start : start + 200] += np.einsum("ds,sn,dn->d", part, member, of_samples, optimize=True)
    drawn /= names.size
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high))


def compare(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[str] | None = None,
    trained: bool = True,
    draws: int = DRAWS,
) -> Compared:
    """`first` minus `second`, outcomes [seeds, samples] each.

    trained: False where neither depends on the seed, so that there is nothing to test over seeds.
    Raises ValueError when shapes differ or there is no sample.
    """
    ours, theirs = (np.atleast_2d(np.asarray(item, np.float64)) for item in (first, second))
    if ours.shape != theirs.shape or ours.size == 0:
        raise ValueError(f"paired outcomes differ in shape: {ours.shape} and {theirs.shape}")
    difference = ours - theirs
    seeds, samples = difference.shape
    if seeds == 1 or not trained:
        p_questions = question_test(ours[0], theirs[0], groups, draws)
    else:
        p_questions = permutation_test(difference.mean(axis=0) * group_weights(groups, samples), draws)
    means = _by_seed(ours, groups), _by_seed(theirs, groups)
    p_seeds = paired_t(*means).p_value if trained and seeds > 1 else None
    return Compared(
        two_way_bootstrap(difference if trained else difference[:1], groups),
        p_questions,
        p_seeds,
        seeds,
        samples,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979), in the order given.

    Rejecting where they are at most a level keeps the chance of any false rejection in the family below it,
    whatever the tests have to do with one another.
    """
    values: Any = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    result = np.empty(values.size)
    result[order] = adjusted
    return [float(value) for value in result]


def _by_seed(outcomes: Floats, groups: Sequence[str] | None) -> Floats:
    """[seeds], mean over groups of the mean over their samples."""
    if groups is None:
        whole: Floats = outcomes.mean(axis=1)
        return whole
    labels = np.asarray(groups)
    parts = [outcomes[:, labels == name].mean(axis=1) for name in np.unique(labels)]
    averaged: Floats = np.mean(parts, axis=0)
    return averaged
