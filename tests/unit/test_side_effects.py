from __future__ import annotations

import math

import numpy as np
import pytest

from roma_ds.evaluation.side_effects import chosen_experts, expert_overlap, load_entropy, perplexity


def test_load_entropy_of_an_even_and_of_a_fixed_choice() -> None:
    even = np.eye(8)[np.arange(16) % 8][:, None, :] + 0.01
    assert load_entropy(even, 1) == pytest.approx(1.0)
    fixed = np.tile(np.array([0.6, 0.3, 0.1, 0.0]), (10, 2, 1))
    assert load_entropy(fixed, 1) == 0.0
    assert load_entropy(fixed, 2) == pytest.approx(math.log(2) / math.log(4))


def test_overlap_counts_shared_experts() -> None:
    base = np.array([[[0.5, 0.3, 0.1, 0.1]]])
    assert expert_overlap(base, base, 2) == 1.0
    assert expert_overlap(np.array([[[0.5, 0.0, 0.4, 0.1]]]), base, 2) == 0.5
    assert expert_overlap(np.array([[[0.0, 0.1, 0.5, 0.4]]]), base, 2) == 0.0
    assert set(chosen_experts(base, 2)[0, 0].tolist()) == {0, 1}


def test_perplexity_is_per_predicted_token() -> None:
    assert perplexity([-2 * math.log(4), -3 * math.log(4)], [2, 3]) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="pieces"):
        perplexity([-1.0], [])
