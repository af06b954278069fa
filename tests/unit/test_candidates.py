from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from roma_ds.index.candidates import Candidates, copies
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.shard import Shard

BACKENDS = ("faiss", "torch")


@dataclass
class Problem:
    """All samples, many with the same vector or prompt, the length of the lists, and a membership."""

    vectors: NDArray[np.float32]
    groups: NDArray[np.int64]
    members: NDArray[np.bool_]
    width: int
    backend: str

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.vectors))

    def shard(self) -> Shard:
        return Shard(self.rows, self.vectors, self.groups, self.backend, refreshed=True)

    def candidates(self) -> Candidates:
        return Candidates.build(self.shard(), self.vectors, self.groups, self.rows, self.width)

    def searched(self) -> Shard:
        shard = self.shard()
        shard.set_members(self.rows, self.members)
        return shard

    def products(self) -> NDArray[np.float64]:
        """[n, n], -inf between samples of one prompt. Exact: the vectors hold small integers."""
        found = self.vectors.astype(np.float64) @ self.vectors.T.astype(np.float64)
        found[self.groups[:, None] == self.groups] = -np.inf
        return found


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, dim = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    return Problem(
        vectors=source.integers(-2, 3, (rows, dim)).astype(np.float32),
        groups=source.integers(0, draw(st.sampled_from([1, 3, 60])), rows),
        members=source.random(rows) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        width=draw(st.integers(1, 45)),
        backend=draw(st.sampled_from(BACKENDS)),
    )


def check_equal(found: Neighbourhood, wanted: Neighbourhood, known: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(found.ids[known], wanted.ids[known])
    np.testing.assert_array_equal(found.inner_products[known], wanted.inner_products[known])


@settings(max_examples=200, deadline=None)
@given(problems())
def test_lists_hold_the_nearest_of_all_samples(problem: Problem) -> None:
    lists = problem.candidates()
    products = problem.products()
    for row in problem.rows:
        order = sorted(np.flatnonzero(products[row] > -np.inf), key=lambda other: -products[row, other])
        wanted = [int(other) for other in order][: problem.width]
        assert lists.ids[row].tolist() == wanted + [ABSENT] * (problem.width - len(wanted))
        assert lists.products[row, : len(wanted)].tolist() == products[row, wanted].tolist()
        assert lists.complete[row] == (len(order) <= problem.width)


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(1, 9))
def test_walking_is_searching_unless_the_list_is_dry(problem: Problem, k: int) -> None:
    lists, rows = problem.candidates(), problem.rows
    found, dry = lists.nearest(rows, problem.members, k)
    wanted = problem.searched().nearest(problem.vectors, problem.groups, k)
    check_equal(found, wanted, ~dry)
    # A list is dry when what it leaves out could change the answer.
    for row in rows:
        listed = lists.ids[row][lists.ids[row] != ABSENT]
        allowed = problem.groups != problem.groups[row]
        unlisted = np.setdiff1d(rows[allowed], listed)
        assert dry[row] == (int(problem.members[listed].sum()) < k and len(unlisted) > 0)
        part = found.ids[row][found.ids[row] != ABSENT]
        assert part.tolist() == wanted.ids[row, : len(part)].tolist()


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(-5, 6), st.booleans(), st.integers(1, 9))
def test_a_ball_by_walking_is_a_ball_by_searching(
    problem: Problem, least: int, above: bool, cap: int
) -> None:
    # Whole numbers: products meet the threshold exactly, or miss it by a half.
    radius = least + 0.5 * above
    lists, rows = problem.candidates(), problem.rows
    found, dry = lists.within(rows, problem.members, radius, cap)
    wanted = problem.searched().within(problem.vectors, problem.groups, radius, cap)
    check_equal(found, wanted, ~dry)
    balls = ((problem.products() >= radius) & problem.members).sum(axis=1)
    assert found.capped == int((balls[~dry] > cap).sum())
    for row in rows:
        inside = [
            other
            for other, product in zip(lists.ids[row], lists.products[row], strict=True)
            if other != ABSENT and product >= radius and problem.members[other]
        ]
        # What comes behind the list has at most its last product: could it be in the ball, and matter?
        open_end = not lists.complete[row] and lists.products[row, -1] >= radius
        assert dry[row] == (open_end and len(inside) <= cap)


@settings(max_examples=100, deadline=None)
@given(problems(), st.lists(st.integers(0, 39), max_size=12), st.integers(1, 5))
def test_any_rows_in_any_order(problem: Problem, chosen: list[int], k: int) -> None:
    rows = np.array([row for row in chosen if row < len(problem.vectors)], np.int64)
    lists = problem.candidates()
    whole, all_dry = lists.nearest(problem.rows, problem.members, k)
    part, dry = lists.nearest(rows, problem.members, k)
    np.testing.assert_array_equal(part.ids, whole.ids[rows])
    np.testing.assert_array_equal(dry, all_dry[rows])
    whole, all_dry = lists.within(problem.rows, problem.members, 0.5, k)
    part, dry = lists.within(rows, problem.members, 0.5, k)
    np.testing.assert_array_equal(part.inner_products, whole.inner_products[rows])
    np.testing.assert_array_equal(dry, all_dry[rows])


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 4), st.integers(1, 5))
def test_lists_built_in_shares_and_walked_where_they_lie(problem: Problem, ranks: int, k: int) -> None:
    whole, dry = problem.candidates().nearest(problem.rows, problem.members, k)
    for rank in range(ranks):
        share = problem.rows[rank::ranks]
        lists = Candidates.build(problem.shard(), problem.vectors, problem.groups, share, problem.width)
        part, part_dry = lists.nearest(np.arange(len(share)), problem.members, k)
        np.testing.assert_array_equal(part.ids, whole.ids[share])
        np.testing.assert_array_equal(part_dry, dry[share])


@settings(max_examples=60, deadline=None)
@given(problems(), st.lists(st.lists(st.integers(0, 39), max_size=10), max_size=6), st.integers(1, 5))
def test_lists_stay_while_members_change(problem: Problem, flips: list[list[int]], k: int) -> None:
    lists, shard = problem.candidates(), problem.searched()
    for step in flips:
        ids = np.unique([row for row in step if row < len(problem.vectors)]).astype(np.int64)
        problem.members[ids] ^= True
        shard.set_members(ids, problem.members[ids])
        found, dry = lists.nearest(problem.rows, problem.members, k)
        check_equal(found, shard.nearest(problem.vectors, problem.groups, k), ~dry)


def test_more_equal_vectors_than_a_list_holds() -> None:
    """The list ends within a tie: who comes next is not in it, so a ball on the tie's value is open."""
    vectors = np.tile(np.array([[0, 1]], np.float32), (9, 1))
    rows = np.arange(9)
    lists = Candidates.build(Shard(rows, vectors, rows, "torch"), vectors, rows, rows, 4)
    assert lists.ids[6].tolist() == [0, 1, 2, 3]
    members = np.ones(9, np.bool_)
    asked = np.array([6])
    assert lists.within(asked, members, 1.0, 4)[1].tolist() == [True]
    found, dry = lists.within(asked, members, 1.0, 3)
    assert (found.capped, found.ids.tolist(), dry.tolist()) == (1, [[0, 1, 2]], [False])
    assert lists.within(asked, members, 1.1, 4)[1].tolist() == [False]
    members[[0, 2]] = False
    found, dry = lists.nearest(asked, members, 2)
    assert (found.ids.tolist(), dry.tolist()) == ([[1, 3]], [False])
    assert lists.nearest(asked, members, 3)[1].tolist() == [True]


def test_approximate_lists_know_less() -> None:
    """A list with room left that is not complete, as of an index that missed some, decides no ball."""
    lists = Candidates(np.array([[4, 2, ABSENT]]), np.array([[0.9, 0.2, 0.0]]), np.array([False]))
    members = np.ones(5, np.bool_)
    row = np.array([0])
    assert lists.within(row, members, 0.5, 2)[1].tolist() == [True]
    assert lists.within(row, members, 0.1, 1)[1].tolist() == [False]
    assert lists.nearest(row, members, 2)[1].tolist() == [False]
    assert lists.nearest(row, members, 3)[1].tolist() == [True]


def test_no_samples_and_nobody_to_list() -> None:
    nothing = np.zeros(0, np.int64)
    empty = Candidates(np.zeros((0, 3), np.int64), np.zeros((0, 3)), np.zeros(0, np.bool_))
    found, dry = empty.nearest(nothing, np.zeros(0, np.bool_), 2)
    assert found.ids.shape == (0, 2)
    assert dry.shape == (0,)
    alone = np.ones((1, 2), np.float32)
    lists = Candidates.build(
        Shard(np.arange(1), alone, np.arange(1), "faiss"), alone, np.arange(1), np.arange(1), 2
    )
    assert lists.complete.tolist() == [True]
    for found, dry in (
        lists.nearest(np.arange(1), np.array([True]), 2),
        lists.within(np.arange(1), np.array([True]), -9.0, 2),
    ):
        assert found.ids.tolist() == [[ABSENT, ABSENT]]
        assert dry.tolist() == [False]


def test_lists_may_be_read_only() -> None:
    rows = np.arange(4)
    vectors = np.eye(4, dtype=np.float32)
    lists = Candidates.build(Shard(rows, vectors, rows, "torch"), vectors, rows, rows, 2)
    for array in (lists.ids, lists.products, lists.complete):
        array.flags.writeable = False
    found, _ = lists.nearest(rows, np.ones(4, np.bool_), 2)
    found.ids[0] = 7
    assert lists.ids[0].tolist() == [1, 2]


def test_lists_are_drawn_from_everyone() -> None:
    rows = np.arange(3)
    vectors = np.eye(3, dtype=np.float32)
    shard = Shard(rows, vectors, rows, "torch", members=np.array([True, False, True]))
    with pytest.raises(ValueError, match="no members"):
        Candidates.build(shard, vectors, rows, rows, 2)


def test_copies_are_counted() -> None:
    among = np.array([5, -1, 5, 7])
    assert copies(np.array([5, 7, 0, -1, 9]), among).tolist() == [2, 1, 0, 1, 0]
    assert copies(np.array([5]), among[:0]).tolist() == [0]
