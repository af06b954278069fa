"""Uncertainty of accuracies and of differences between variants on the same samples or seeds.

Every function is pure. Outcomes are arrays [samples], bool or float; a pair of them is in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval, in the unit of the data."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True when both bounds lie on the same side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class McNemar:
    """Samples that only one of two variants got right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class PairedT:
    """Mean difference over pairs (usually seeds) with its t interval and two-sided p-value."""

    difference: Interval
    p_value: float
    pairs: int


def stderr(outcomes: ArrayLike) -> float:
    """Standard error of the mean of outcomes [samples]; for accuracies sqrt(p (1 - p) / (n - 1)).

    Zero for a single sample. Raises ValueError when there is none.
    """
    values = _vector(outcomes)
    if values.size == 1:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(values.size))


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; holds up near 0 and 1, where the normal one does not.

    Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    share = _share(correct, total)
    z = _quantile(confidence)
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def normal_interval(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """Textbook interval p +- z sqrt(p (1 - p) / n) of a proportion, cut to [0, 1].

    Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    share = _share(correct, total)
    half = _quantile(confidence) * math.sqrt(share * (1 - share) / total)
    return Interval(share, max(0.0, share - half), min(1.0, share + half))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[str] | None = None,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of mean(first - second) over the same samples.

    With `groups` (the task of each sample) the statistic is the mean over groups of the mean difference in
    the group, as the average of a report is, and samples are redrawn within their group.
    Raises ValueError when lengths differ or there is no sample.
    """
    difference = _vector(first) - _matching(second, first)
    labels = np.asarray(groups if groups is not None else np.zeros(difference.size, dtype=np.int8))
    if labels.shape != difference.shape:
        raise ValueError(f"{difference.size} samples but {labels.size} groups")
    rng = np.random.default_rng(seed)
    names = np.unique(labels)
    drawn = np.zeros(draws)
    estimate = 0.0
    for name in names:
        member = difference[labels == name]
        values, counts = np.unique(member, return_counts=True)
        # Redrawing n samples is one multinomial draw over the distinct values: same law, far less work.
        redrawn = rng.multinomial(member.size, counts / member.size, size=draws)
        drawn += redrawn @ values / member.size / names.size
        estimate += float(member.mean()) / names.size
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high))


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact McNemar test: are the samples that one variant alone gets right split evenly between the two?

    Raises ValueError when lengths differ or there is no sample.
    """
    left, right = _vector(first) > 0.5, _matching(second, first) > 0.5
    only_first, only_second = int((left & ~right).sum()), int((right & ~left).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of values [seeds] with its t interval. Raises ValueError for fewer than two values."""
    data = _vector(values)
    if data.size < 2:
        raise ValueError("an interval over seeds needs at least two of them")
    half = float(stats.t.ppf(0.5 + confidence / 2, data.size - 1)) * stderr(data)
    mean = float(data.mean())
    return Interval(mean, mean - half, mean + half)


def paired_t(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> PairedT:
    """Paired t test of mean(first - second) over values [seeds].

    Differences that are all equal give p = 1 when they are zero and p = 0 otherwise.
    Raises ValueError when lengths differ or there are fewer than two pairs.
    """
    difference = _vector(first) - _matching(second, first)
    interval = t_interval(difference, confidence)
    error = stderr(difference)
    if error <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        p_value = 0.0 if abs(interval.estimate) > 1e-12 else 1.0
    else:
        p_value = float(2 * stats.t.sf(abs(interval.estimate) / error, difference.size - 1))
    return PairedT(interval, p_value, int(difference.size))


def _vector(values: ArrayLike) -> Floats:
    vector: Floats = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"expected a non-empty vector of outcomes, got shape {vector.shape}")
    return vector


def _matching(values: ArrayLike, other: ArrayLike) -> Floats:
    vector = _vector(values)
    if vector.size != np.size(other):
        raise ValueError(f"paired outcomes differ in length: {np.size(other)} and {vector.size}")
    return vector


def _share(correct: int, total: int) -> float:
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is no proportion")
    return correct / total


def _quantile(confidence: float) -> float:
    quantile: Any = stats.norm.ppf(0.5 + confidence / 2)
    return float(quantile)
