"""Tests between variants against scipy and statsmodels, and their error rate over simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from roma_ds.evaluation import comparison_tests as subject
from roma_ds.evaluation.uncertainty import mcnemar_exact


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert subject.holm(p_values) == pytest.approx(list(expected), abs=1e-12)


def test_holm_by_hand() -> None:
    assert subject.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert subject.holm([]) == []


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_mcnemar_is_that_of_statsmodels(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    table = [
        [int((first & second).sum()), int((first & ~second).sum())],
        [int((~first & second).sum()), int((~first & ~second).sum())],
    ]
    expected = 1.0 if table[0][1] + table[1][0] == 0 else mcnemar(table, exact=True).pvalue
    assert mcnemar_exact(first, second).p_value == pytest.approx(min(1.0, expected))


def test_permutation_of_few_samples_is_exact() -> None:
    difference = np.array([0.4, 0.2, -0.1, 0.6, 0.3, 0.0])
    # Of the 32 ways to sign the five that are not zero, 2 reach the sum 1.4 and 2 more -1.4 or 1.6.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    sums = signs.T @ difference[:5]
    expected = np.mean(np.abs(sums) >= abs(difference.sum()) - 1e-9)
    assert subject.permutation_test(difference) == pytest.approx(expected)
    assert subject.permutation_test([0.0, 0.0]) == 1.0
    assert subject.permutation_test([0.0, 0.2]) == 1.0
    with pytest.raises(ValueError, match="non-empty"):
        subject.permutation_test([])


def test_permutation_of_many_samples_agrees_with_the_sign_test_and_t() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(0.12, 1.0, 400)
    expected = stats.ttest_1samp(difference, 0).pvalue
    assert subject.permutation_test(difference) == pytest.approx(expected, abs=0.01)
    outcome = np.r_[np.ones(30), -np.ones(14), np.zeros(300)]
    expected = stats.binomtest(30, 44).pvalue
    assert subject.permutation_test(outcome) == pytest.approx(expected, abs=0.006)
    assert subject.permutation_test(outcome, seed=1) == subject.permutation_test(outcome, seed=1)


def test_two_way_bootstrap_of_one_seed_is_scipys_and_more_seeds_widen_it() -> None:
    rng = np.random.default_rng(5)
    difference = rng.choice([-1.0, 0.0, 1.0], size=500, p=[0.1, 0.7, 0.2])
    ours = subject.two_way_bootstrap(difference, draws=4000)
    theirs = stats.bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)
    spread = difference + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    both = subject.two_way_bootstrap(spread)
    assert both.estimate == pytest.approx(ours.estimate)
    assert both.high - both.low > 1.2 * (ours.high - ours.low)
    grouped = subject.two_way_bootstrap([[1.0] * 10 + [0.0] * 90], groups=["a"] * 10 + ["b"] * 90)
    assert (grouped.low, grouped.estimate, grouped.high) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="groups"):
        subject.two_way_bootstrap([[0.0, 1.0]], groups=["a"])


def test_what_is_tested_is_what_is_reported() -> None:
    """A small task gains, a large one loses: the mean over tasks rises, that over questions falls."""
    rng = np.random.default_rng(0)
    groups = ["small"] * 100 + ["large"] * 1000
    base = rng.random((5, 1100)) < 0.5
    ours = base.copy()
    for seed in range(5):
        ours[seed, rng.choice(np.flatnonzero(~base[seed, :100]), 30, replace=False)] = True
        lost = 100 + np.flatnonzero(base[seed, 100:])
        ours[seed, rng.choice(lost, 60, replace=False)] = False
    found = subject.compare(ours, base, groups)
    assert found.difference.estimate == pytest.approx((0.30 - 0.06) / 2)
    assert found.p_questions == pytest.approx(
        subject.permutation_test((ours.mean(0) - base.mean(0)) * np.repeat([5.5, 0.55], [100, 1000]))
    )
    # Weighed so that they cancel, nothing is left to find, though the questions alone say otherwise.
    pair = [[1, 1] + [0] * 40], [[0] * 4 + [1] * 19 + [0] * 19]
    even, plain = subject.compare(*pair, ["a"] * 4 + ["b"] * 38), subject.compare(*pair)
    assert even.difference.estimate == pytest.approx(0) and even.p_questions > 0.5
    assert plain.difference.estimate < -0.4 and plain.p_questions < 0.001
    assert subject.group_weights(["b", "a", "b", "b"], 4) == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])


def test_a_clear_difference_is_found_and_equal_runs_are_not_different() -> None:
    rng = np.random.default_rng(7)
    base = rng.random((1, 600)) < 0.6
    better = np.array([base[0] | (rng.random(600) < 0.2) for _ in range(5)])
    found = subject.compare(better, np.repeat(base, 5, axis=0))
    assert found.difference.low > 0.03
    assert found.p_value < 0.001
    same = subject.compare(better, better)
    assert (same.p_questions, same.p_seeds, same.difference.estimate) == (1.0, 1.0, 0.0)
    untrained = subject.compare(np.repeat(base, 5, axis=0), np.repeat(~base, 5, axis=0), trained=False)
    assert untrained.p_seeds is None
    with pytest.raises(ValueError, match="differ in shape"):
        subject.compare(base, better)


def test_two_copies_of_a_variant_differ_as_rarely_as_promised() -> None:
    """Copies share questions, not the luck of training: each seed has an accuracy of its own.

    A test over questions alone takes that luck for a difference; the rate of false claims must stay at 5%.
    """
    rng = np.random.default_rng(0)
    studies, claimed, by_questions = 300, 0, 0
    for _ in range(studies):
        difficulty = rng.normal(0.5, 1.0, 300)
        copies = []
        for _ in range(2):
            luck = rng.normal(0.0, 0.25, (5, 1))
            copies.append(rng.random((5, 300)) < 1 / (1 + np.exp(-(difficulty + luck))))
        found = subject.compare(*copies, draws=400)
        claimed += found.p_value < 0.05
        by_questions += found.p_questions < 0.05
    assert claimed / studies <= 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5
    assert by_questions / studies > claimed / studies


def test_a_family_of_true_nulls_is_rarely_broken() -> None:
    """20 variants that are all copies of the reference: any claim at all in at most 5% of the studies."""
    rng = np.random.default_rng(1)
    studies = 400
    broken = sum(min(subject.holm(list(rng.random(20)))) < 0.05 for _ in range(studies))
    assert broken / studies <= 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5
