"""Statistics against scipy, known cases, and simulated error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roma_ds.evaluation import uncertainty as subject

OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=60)


def test_stderr_of_an_accuracy() -> None:
    outcomes = [1, 1, 1, 0]
    assert subject.stderr(outcomes) == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert subject.stderr([True]) == 0.0
    with pytest.raises(ValueError, match="non-empty"):
        subject.stderr([])


@given(OUTCOMES)
def test_proportion_intervals_match_scipy(outcomes: list[bool]) -> None:
    correct, total = sum(outcomes), len(outcomes)
    wilson = subject.wilson_interval(correct, total)
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert (wilson.low, wilson.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson.low <= wilson.estimate <= wilson.high
    normal = subject.normal_interval(correct, total)
    assert 0 <= normal.low <= normal.estimate <= normal.high <= 1


def test_impossible_proportions_are_refused() -> None:
    for correct, total in [(1, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="no proportion"):
            subject.wilson_interval(correct, total)


def test_mcnemar_known_case() -> None:
    first = [1] * 10 + [0] * 2 + [1] * 50 + [0] * 8
    second = [0] * 10 + [1] * 2 + [1] * 50 + [0] * 8
    result = subject.mcnemar_exact(first, second)
    assert (result.only_first, result.only_second) == (10, 2)
    # 2 * P(Binomial(12, 1/2) <= 2) = 2 * (1 + 12 + 66) / 4096
    assert result.p_value == pytest.approx(158 / 4096)


@given(OUTCOMES)
def test_a_variant_does_not_differ_from_itself(outcomes: list[bool]) -> None:
    assert subject.mcnemar_exact(outcomes, outcomes) == subject.McNemar(0, 0, 1.0)
    interval = subject.paired_bootstrap(outcomes, outcomes, draws=50)
    assert interval == subject.Interval(0.0, 0.0, 0.0)
    assert not interval.excludes_zero


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_bootstrap_brackets_the_mean_and_is_antisymmetric(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [list(column) for column in zip(*pairs, strict=True)]
    there = subject.paired_bootstrap(first, second, draws=2000)
    back = subject.paired_bootstrap(second, first, draws=2000)
    assert there.estimate == pytest.approx(np.mean(first) - np.mean(second))
    assert there.low <= there.estimate + 1e-9 and there.high >= there.estimate - 1e-9
    assert back.estimate == pytest.approx(-there.estimate)


def test_bootstrap_matches_scipy_and_weighs_groups_evenly() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(300) < 0.7, rng.random(300) < 0.6
    difference = first.astype(float) - second
    ours = subject.paired_bootstrap(first, second)
    theirs = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    grouped = subject.paired_bootstrap([1] * 10 + [0] * 90, [0] * 100, groups=["a"] * 10 + ["b"] * 90)
    assert grouped == subject.Interval(0.5, 0.5, 0.5)
    assert grouped.excludes_zero


def test_bootstrap_is_reproducible_and_checks_lengths() -> None:
    first, second = [1, 0, 1, 1, 0], [0, 0, 1, 0, 1]
    assert subject.paired_bootstrap(first, second, seed=3) == subject.paired_bootstrap(first, second, seed=3)
    with pytest.raises(ValueError, match="differ in length"):
        subject.paired_bootstrap(first, second[:-1])
    with pytest.raises(ValueError, match="groups"):
        subject.paired_bootstrap(first, second, groups=["a"])


def test_false_positives_are_as_rare_as_promised() -> None:
    """Two variants of equal accuracy on the same 200 questions: 5% of studies may call them different."""
    rng = np.random.default_rng(0)
    studies = 600
    difficulty = rng.random((studies, 200))
    first, second = rng.random((studies, 200)) < difficulty, rng.random((studies, 200)) < difficulty
    by_bootstrap = np.mean(
        [subject.paired_bootstrap(a, b, draws=1000).excludes_zero for a, b in zip(first, second, strict=True)]
    )
    by_mcnemar = np.mean(
        [subject.mcnemar_exact(a, b).p_value < 0.05 for a, b in zip(first, second, strict=True)]
    )
    assert 0.02 <= by_bootstrap <= 0.085
    assert by_mcnemar <= 0.06


def test_t_interval_and_paired_t_match_scipy() -> None:
    first, second = np.array([76.1, 77.0, 75.2, 78.3, 76.6]), np.array([74.0, 75.9, 74.8, 75.1, 75.5])
    interval = subject.t_interval(first)
    expected = stats.t.interval(0.95, 4, loc=first.mean(), scale=stats.sem(first))
    assert (interval.low, interval.high) == pytest.approx(expected)
    paired = subject.paired_t(first, second)
    scipy_result = stats.ttest_rel(first, second)
    assert paired.p_value == pytest.approx(scipy_result.pvalue)
    bounds = scipy_result.confidence_interval()
    assert (paired.difference.low, paired.difference.high) == pytest.approx((bounds.low, bounds.high))
    assert paired.pairs == 5


def test_paired_t_of_constant_differences() -> None:
    assert subject.paired_t([1, 2, 3], [1, 2, 3]).p_value == 1.0
    assert subject.paired_t([2, 3, 4], [1, 2, 3]).p_value == 0.0
    with pytest.raises(ValueError, match="at least two"):
        subject.t_interval([1.0])
