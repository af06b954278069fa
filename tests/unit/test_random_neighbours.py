from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.baselines import TRAINED
from roma_ds.baselines.neighbours import random_neighbours
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.shard import Shard
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.weights import row_weights


def problem(
    seed: int, rows: int, groups: int, share: float, k: int
) -> tuple[Neighbourhood, np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    vectors = source.standard_normal((rows, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    successful = source.random(rows) < share
    number = np.unique(source.integers(0, groups, rows), return_inverse=True)[1].astype(np.int64)
    index = Shard.of_successful(vectors, successful, number, "torch")
    return index.nearest(vectors, number, k), successful, number


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(1, 6),
)
def test_as_many_members_of_s_as_the_nearest_and_never_a_copy(
    seed: int, rows: int, groups: int, share: float, k: int
) -> None:
    like, successful, number = problem(seed, rows, groups, share, k)
    found = random_neighbours(like, successful, number, 0)
    assert found.ids.shape == like.ids.shape
    np.testing.assert_array_equal(found.present, like.present)
    for row in range(rows):
        ids = found.ids[row][found.present[row]]
        assert len(set(ids.tolist())) == len(ids)
        assert successful[ids].all()
        assert (number[ids] != number[row]).all()
        assert row not in ids
    assert (found.ids[~found.present] == ABSENT).all()


def test_weights_are_equal() -> None:
    like, successful, number = problem(0, 40, 40, 0.5, 3)
    found = random_neighbours(like, successful, number, 0)
    weights = row_weights(similarity(found.inner_products, 0.4), found.present)
    np.testing.assert_allclose(weights, np.full_like(weights, 1 / 3))


def test_drawn_from_all_of_s_evenly_and_by_the_seed() -> None:
    rows = 2000
    successful = np.arange(rows) % 40 == 0
    like = Neighbourhood(np.zeros((rows, 3), np.int64), np.ones((rows, 3)))
    one = random_neighbours(like, successful, np.arange(rows), 1)
    again = random_neighbours(like, successful, np.arange(rows), 1)
    other = random_neighbours(like, successful, np.arange(rows), 2)
    np.testing.assert_array_equal(one.ids, again.ids)
    assert (one.ids != other.ids).mean() > 0.9
    counts = np.bincount(one.ids.ravel(), minlength=rows)[successful]
    # 6000 draws over 50 members: 120 each, with a standard deviation near 11.
    assert counts.min() > 60
    assert counts.max() < 180


def test_variants_change_one_thing_each() -> None:
    assert list(TRAINED)[:3] == ["roma", "router_tuning", "random_neighbours"]
    assert TRAINED["router_tuning"].lambda_ == 0.0
    assert TRAINED["router_tuning"].neighbours is None
    assert TRAINED["random_neighbours"].lambda_ is None
    assert (TRAINED["roma"].lambda_, TRAINED["roma"].neighbours) == (None, None)
