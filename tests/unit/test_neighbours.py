from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood, prompt_groups
from roma_ds.index.shard import Shard

BACKENDS = ("faiss", "torch")
Problem = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Embeddings with many exact ties, membership in S and prompt groups."""
    rows = draw(st.integers(1, 40))
    dim = draw(st.integers(1, 6))
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        vectors = source.integers(-2, 3, (rows, dim)).astype(np.float32)
    else:
        distinct = source.standard_normal((draw(st.integers(1, 6)), dim)).astype(np.float32)
        distinct /= np.linalg.norm(distinct, axis=1, keepdims=True)
        vectors = distinct[source.integers(0, len(distinct), rows)]
    successful = source.random(rows) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    groups = source.integers(0, draw(st.sampled_from([1, 3, rows])), rows)
    return vectors, successful, np.unique(groups, return_inverse=True)[1].astype(np.int64)


def brute_force(problem: Problem, row: int) -> list[tuple[float, int]]:
    """(inner product, id) of all allowed members in the total order: product descending, id ascending."""
    vectors, successful, groups = problem
    found = []
    for other in range(len(vectors)):
        if successful[other] and other != row and groups[other] != groups[row]:
            products = [float(a) * float(b) for a, b in zip(vectors[row], vectors[other], strict=True)]
            found.append((float(np.array(products, np.float64).sum()), other))
    return sorted(found, key=lambda item: (-item[0], item[1]))


def shards(problem: Problem) -> Iterator[Shard]:
    """S as a shard of its own, and as a mask over all samples, on every backend."""
    vectors, successful, groups = problem
    for backend in BACKENDS:
        yield Shard.of_successful(vectors, successful, groups, backend)
        yield Shard(np.arange(len(vectors)), vectors, groups, backend, members=successful, refreshed=True)


def check(found: Neighbourhood, wanted: list[list[tuple[float, int]]], width: int) -> None:
    assert found.ids.shape == found.inner_products.shape == (len(wanted), width)
    for row, expected in enumerate(wanted):
        ids = [number for _, number in expected]
        assert found.ids[row].tolist() == ids + [ABSENT] * (width - len(ids)), row
        padded = [product for product, _ in expected] + [0.0] * (width - len(ids))
        np.testing.assert_allclose(found.inner_products[row], padded, rtol=0, atol=1e-12)
    assert found.empty == sum(not expected for expected in wanted)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 12), st.integers(1, 7))
def test_nearest_is_brute_force_in_the_total_order(problem: Problem, k: int, chunk: int) -> None:
    rows = range(len(problem[0]))
    wanted = [brute_force(problem, row)[:k] for row in rows]
    for shard in shards(problem):
        check(shard.nearest(problem[0], problem[2], k, chunk), wanted, k)


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(-1.2, 1.2), st.booleans(), st.integers(1, 12))
def test_within_is_brute_force_and_counts_the_cap(
    problem: Problem, least: float, exact: bool, cap: int
) -> None:
    rows = range(len(problem[0]))
    ranked = [brute_force(problem, row) for row in rows]
    products = sorted({product for row in ranked for product, _ in row})
    if exact and products:
        # A threshold that some products meet exactly: at least means at least.
        least = products[len(products) // 2]
    balls = [[item for item in row if item[0] >= least] for row in ranked]
    for shard in shards(problem):
        found = shard.within(problem[0], problem[2], least, cap)
        check(found, [ball[:cap] for ball in balls], cap)
        assert found.capped == sum(len(ball) > cap for ball in balls)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_ties_than_the_first_search_brings(backend: str) -> None:
    """A thousand equal vectors: the smallest ids win, wherever the library puts them."""
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (1000, 1))
    groups = np.arange(1000)
    shard = Shard(groups, vectors, groups, backend)
    asking = np.array([0, 500, 999])
    found = shard.nearest(vectors[asking], groups[asking], 3)
    assert found.ids.tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert shard.within(vectors[2:3], groups[2:3], 0.9, 4).ids.tolist() == [[0, 1, 3, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_ties_are_ordered_in_float64(backend: str) -> None:
    """Products that are equal in float32 and not in float64."""
    close = np.array([[1, 3e-5], [1, 2e-5], [1, 1e-5], [1, 4e-5]], np.float32)
    query = np.array([[1, 1e-4]], np.float32)
    found = Shard(np.arange(4), close, np.arange(4), backend).nearest(query, np.array([4]), 4)
    assert found.ids.tolist() == [[3, 0, 1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_outside_s_has_neighbours_and_is_none(backend: str) -> None:
    vectors = np.eye(4, dtype=np.float32)
    member = np.array([True, True, False, True])
    shard = Shard.of_successful(vectors, member, np.arange(4), backend)
    found = shard.nearest(vectors, np.arange(4), 3)
    assert found.ids.tolist() == [[1, 3, -1], [0, 3, -1], [0, 1, 3], [0, 1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_of_a_prompt_are_never_neighbours_of_each_other(backend: str) -> None:
    groups = prompt_groups(["a", "b", "a", "a", "c"])
    assert groups.tolist() == [0, 1, 0, 0, 2]
    vectors = np.tile(np.array([[1, 0]], np.float32), (5, 1))
    found = Shard(np.arange(5), vectors, groups, backend).nearest(vectors, groups, 4)
    assert found.ids.tolist() == [[1, 4, -1, -1], [0, 2, 3, 4], [1, 4, -1, -1], [1, 4, -1, -1], [0, 1, 2, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(backend: str, bad: float) -> None:
    """In S, where the index would lose them, and outside, where they ask."""
    vectors = np.eye(3, dtype=np.float32)
    vectors[1, 0] = bad
    with pytest.raises(UserError, match="id 1 is not finite"):
        Shard.of_successful(vectors, np.array([True, True, False]), np.arange(3), backend)
    shard = Shard.of_successful(vectors, np.array([True, False, True]), np.arange(3), backend)
    with pytest.raises(UserError, match="query 1 is not finite"):
        shard.nearest(vectors, np.arange(3), 1)
    with pytest.raises(UserError, match="query 1 is not finite"):
        shard.within(vectors, np.arange(3), 0.5, 1)


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(2, 4), st.integers(1, 5))
def test_ranks_that_share_the_queries_find_what_one_finds(problem: Problem, size: int, k: int) -> None:
    vectors, _, groups = problem
    shard = Shard.of_successful(*problem, "faiss")
    whole = shard.nearest(vectors, groups, k)
    for rank in range(size):
        part = shard.nearest(vectors[rank::size], groups[rank::size], k)
        np.testing.assert_array_equal(part.ids, whole.ids[rank::size])
        np.testing.assert_array_equal(part.inner_products, whole.inner_products[rank::size])


def test_larger_random_problem_with_the_blas_path_of_the_library() -> None:
    """Many queries in a block: FAISS then computes by another kernel."""
    source = np.random.default_rng(0)
    vectors = source.standard_normal((3000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    member = source.random(3000) < 0.6
    groups = np.arange(3000)
    products = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    products[:, ~member] = -np.inf
    np.fill_diagonal(products, -np.inf)
    rows = np.arange(0, 3000, 7)
    wanted = np.argsort(-products, axis=1, kind="stable")[rows, :5]
    for shard in shards((vectors, member, groups)):
        found = shard.nearest(vectors[rows], groups[rows], 5)
        np.testing.assert_array_equal(found.ids, wanted)
