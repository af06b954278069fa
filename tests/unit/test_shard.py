from __future__ import annotations

import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.index.backend import SearchBackend
from roma_ds.index.faiss_backend import FaissBackend
from roma_ds.index.neighbourhood import ABSENT, Neighbourhood
from roma_ds.index.search import exact_products, make_backend
from roma_ds.index.shard import Shard
from roma_ds.index.torch_backend import TorchBackend

BACKENDS = ("faiss", "torch")


@dataclass
class Problem:
    """Samples with scattered ids, members among them, and queries that need not be samples."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    groups: NDArray[np.int64]
    members: NDArray[np.bool_]
    queries: NDArray[np.float32]
    own: NDArray[np.int64]

    def shard(self, backend: str) -> Shard:
        return Shard(self.ids, self.vectors, self.groups, backend, members=self.members, refreshed=True)

    def ranked(self, query: int) -> list[tuple[float, int]]:
        """All that may answer, by plain sorting. Sums of small integers are exact in any order."""
        products = self.vectors.astype(np.float64) @ self.queries[query].astype(np.float64)
        allowed = np.flatnonzero(self.members & (self.groups != self.own[query]))
        found = [(float(products[place]), int(self.ids[place])) for place in allowed]
        return sorted(found, key=lambda item: (-item[0], item[1]))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, queries = draw(st.integers(0, 60)), draw(st.integers(0, 40))
    dim, groups = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 100]))
    # Whole numbers: products are exact, so ties are exact, and there are zero vectors.
    reach = draw(st.sampled_from([1, 2, 1000]))
    return Problem(
        ids=np.sort(source.permutation(3 * rows + 1)[:rows]),
        vectors=source.integers(-reach, reach + 1, (rows, dim)).astype(np.float32),
        groups=source.integers(0, groups, rows),
        members=source.random(rows) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])),
        queries=source.integers(-reach, reach + 1, (queries, dim)).astype(np.float32),
        # Group -7 is nobody's: such a query may get anyone.
        own=np.where(source.random(queries) < 0.2, -7, source.integers(0, groups, queries)),
    )


def check(found: Neighbourhood, wanted: list[list[tuple[float, int]]], width: int) -> None:
    assert found.ids.shape == found.inner_products.shape == (len(wanted), width)
    assert found.ids.dtype == np.int64
    assert found.inner_products.dtype == np.float64
    for row, expected in enumerate(wanted):
        padding = width - len(expected)
        assert found.ids[row].tolist() == [number for _, number in expected] + [ABSENT] * padding
        assert found.inner_products[row].tolist() == [value for value, _ in expected] + [0.0] * padding


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(1, 12), st.sampled_from([1, 7, 512]))
def test_nearest_is_sorting_all_members(problem: Problem, k: int, chunk: int) -> None:
    wanted = [problem.ranked(query)[:k] for query in range(len(problem.queries))]
    for backend in BACKENDS:
        check(problem.shard(backend).nearest(problem.queries, problem.own, k, chunk), wanted, k)


@settings(max_examples=200, deadline=None)
@given(problems(), st.floats(-5, 5), st.booleans(), st.integers(1, 12))
def test_within_is_filtering_all_members(problem: Problem, least: float, met: bool, cap: int) -> None:
    ranked = [problem.ranked(query) for query in range(len(problem.queries))]
    values = sorted({value for row in ranked for value, _ in row})
    if met and values:
        least = values[len(values) // 2]
    balls = [[item for item in row if item[0] >= least] for row in ranked]
    for backend in BACKENDS:
        found = problem.shard(backend).within(problem.queries, problem.own, least, cap)
        check(found, [ball[:cap] for ball in balls], cap)
        assert found.capped == sum(len(ball) > cap for ball in balls)


@settings(max_examples=100, deadline=None)
@given(problems(), st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=8), st.integers(1, 6))
def test_members_change_in_place(problem: Problem, changes: list[tuple[float, bool]], k: int) -> None:
    shards = [problem.shard(backend) for backend in BACKENDS]
    for share, value in changes:
        part = problem.ids[: round(share * len(problem.ids))][::-1]
        problem.members[np.isin(problem.ids, part)] = value
        for shard in shards:
            shard.set_members(part, value)
            np.testing.assert_array_equal(shard.members, problem.members)
            wanted = [problem.ranked(query)[:k] for query in range(len(problem.queries))]
            check(shard.nearest(problem.queries, problem.own, k), wanted, k)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(2, 4), st.integers(1, 6))
def test_parts_merge_to_the_whole(problem: Problem, parts: int, k: int) -> None:
    """The same bits in a part of the index as in the whole, so that merging by products is exact."""
    source = np.random.default_rng(len(problem.ids))
    problem.vectors = source.standard_normal(problem.vectors.shape).astype(np.float32)
    problem.queries = source.standard_normal(problem.queries.shape).astype(np.float32)
    whole = problem.shard("faiss").nearest(problem.queries, problem.own, k)
    found = []
    for part in range(parts):
        keep = problem.ids % parts == part
        shard = Shard(
            problem.ids[keep],
            problem.vectors[keep],
            problem.groups[keep],
            BACKENDS[part % 2],
            members=problem.members[keep],
        )
        found.append(shard.nearest(problem.queries, problem.own, k))
    for query in range(len(problem.queries)):
        merged = sorted(
            (-value, number)
            for part in found
            for value, number in zip(part.inner_products[query], part.ids[query], strict=True)
            if number != ABSENT
        )[:k]
        assert [number for _, number in merged] == whole.ids[query][whole.present[query]].tolist()
        assert [-value for value, _ in merged] == whole.inner_products[query][whole.present[query]].tolist()


def test_products_are_the_same_bits_alone_and_among_others() -> None:
    source = np.random.default_rng(3)
    queries = source.standard_normal((5, 384)).astype(np.float32)
    vectors = source.standard_normal((9000, 384)).astype(np.float32)
    rows, places = source.integers(0, 5, 9000), source.permutation(9000)
    together = exact_products(queries, rows, vectors, places)
    for pair in range(0, 9000, 450):
        alone = exact_products(queries, rows[pair : pair + 1], vectors, places[pair : pair + 1])
        assert alone[0] == together[pair]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_shard_answers(backend: str) -> None:
    nothing = np.zeros(0, np.int64)
    shard = Shard(nothing, np.zeros((0, 3), np.float32), nothing, backend, refreshed=True)
    queries = np.eye(3, dtype=np.float32)
    assert shard.nearest(queries, np.arange(3), 2).ids.tolist() == [[ABSENT] * 2] * 3
    assert shard.within(queries, np.arange(3), -1.0, 2).ids.tolist() == [[ABSENT] * 2] * 3
    assert shard.nearest(queries[:0], nothing, 2).ids.shape == (0, 2)
    assert shard.within(queries[:0], nothing, 0.5, 2).ids.shape == (0, 2)
    shard.set_members(nothing, True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_vector_ties_with_everyone(backend: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    groups = np.arange(500)
    members = groups % 3 == 1
    shard = Shard(2 * groups, vectors, groups, backend, members=members)
    zero = np.zeros((1, 8), np.float32)
    assert shard.nearest(zero, np.array([1]), 3).ids.tolist() == [[8, 14, 20]]
    assert shard.within(zero, np.array([1]), 0.0, 3).ids.tolist() == [[8, 14, 20]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_may_be_written_to_by_the_owner(backend: str) -> None:
    ids = np.arange(4)
    shard = Shard(ids, np.eye(4, dtype=np.float32), ids, backend)
    shard.members[:] = [False, True, False, True]
    found = shard.nearest(np.ones((1, 4), np.float32), np.array([9]), 4)
    assert found.ids.tolist() == [[1, 3, ABSENT, ABSENT]]
    given = np.array([True, False, False, False])
    shard = Shard(ids, np.eye(4, dtype=np.float32), ids, backend, members=given)
    given[:] = True
    assert shard.members.sum() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_that_may_not_be_written_to(backend: str, tmp_path: Any) -> None:
    """As they are when memory-mapped: no warning, no copy that is needed for writing."""
    np.save(tmp_path / "vectors.npy", np.eye(4, dtype=np.float32))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shard = Shard(np.arange(4), vectors, np.arange(4), backend)
        assert shard.nearest(vectors, np.arange(4), 1).ids.tolist() == [[1], [0], [0], [0]]


def brute_top(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], among: NDArray[np.bool_] | None, count: int
) -> list[list[float]]:
    scores = queries @ vectors.T
    if among is not None:
        scores = scores[:, among]
    return [sorted(row.tolist(), reverse=True)[:count] for row in scores]


def check_top(backend: SearchBackend, problem: Problem, count: int, among: NDArray[np.bool_] | None) -> None:
    scores, places = backend.top(problem.queries, count, among)
    assert scores.shape == places.shape == (len(problem.queries), count)
    wanted = brute_top(problem.queries, problem.vectors, among, count)
    for row, (values, found) in enumerate(zip(scores, places, strict=True)):
        present = found[found >= 0]
        assert (found[len(present) :] == -1).all()
        assert len(set(present.tolist())) == len(present) == len(wanted[row])
        assert among is None or among[present].all()
        assert values[: len(present)].tolist() == wanted[row]
        products = problem.vectors[present] @ problem.queries[row]
        assert products.tolist() == wanted[row]


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 70), st.booleans())
def test_backends_bring_the_best_of_those_asked_for(problem: Problem, count: int, masked: bool) -> None:
    if not len(problem.ids):
        return
    count = min(count, len(problem.ids))
    among = problem.members if masked else None
    for name in BACKENDS:
        check_top(make_backend(name, problem.vectors), problem, count, among)


@settings(max_examples=80, deadline=None)
@given(problems(), st.integers(1, 70), st.integers(1, 5), st.integers(1, 9))
def test_torch_in_small_blocks(problem: Problem, count: int, queries: int, vectors: int) -> None:
    if not len(problem.ids):
        return
    backend = TorchBackend(problem.vectors)
    backend.QUERIES, backend.VECTORS = queries, vectors
    check_top(backend, problem, min(count, len(problem.ids)), problem.members)
    rows, places = backend.within(problem.queries, 1.0, problem.members)
    wanted = (problem.queries @ problem.vectors.T > 1) & problem.members
    assert sorted(zip(rows.tolist(), places.tolist(), strict=True)) == [
        (query, place) for query, place in np.argwhere(wanted).tolist()
    ]
    assert (np.diff(rows) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 70), st.sampled_from([1, 16]), st.booleans())
def test_faiss_by_filtering_and_by_selection(
    problem: Problem, count: int, threads: int, device: bool
) -> None:
    """The number of threads decides; a device, here a CPU index in its place, always filters."""
    if not len(problem.ids):
        return
    backend = FaissBackend(problem.vectors)
    backend._threads = threads
    backend._gpu = backend._index if device else None
    # The choice alone: no more threads are started.
    backend._kernel = lambda multiply: nullcontext()  # type: ignore[method-assign,assignment]
    check_top(backend, problem, min(count, len(problem.ids)), problem.members)


@pytest.mark.parametrize("device", [False, True])
def test_members_behind_all_others_are_found_by_selection(device: bool) -> None:
    """Filtering brings none of them, whatever is asked for within reason."""
    vectors = np.arange(6000, 0, -1, dtype=np.float32)[:, None]
    members = np.arange(6000) >= 3000
    backend = FaissBackend(vectors)
    backend._gpu = backend._index if device else None
    queries = np.ones((20, 1), np.float32)
    queries[7:] = -1
    _, places = backend.top(queries, 3, members)
    assert places[:7].tolist() == [[3000, 3001, 3002]] * 7
    assert places[7:].tolist() == [[5999, 5998, 5997]] * 13
    assert (backend.top(queries, 3000, members)[1] >= 3000).all()


def test_faiss_keeps_to_the_threads_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss
    import torch

    used: list[int] = []
    search = faiss.IndexFlatIP.search

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        used.append(faiss.omp_get_max_threads())
        return search(self, *arguments, **options)

    before = faiss.omp_get_max_threads()
    monkeypatch.setattr(faiss.IndexFlatIP, "search", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    vectors = np.eye(300, dtype=np.float32)
    backend = FaissBackend(vectors)
    backend.top(vectors[:2], 1)
    # Threads fight in matrix products: one is left to do them.
    backend.top(vectors, 1)
    backend.top(vectors, 1, vectors[0] > 0)
    # Another index of the process, with fewer threads.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    FaissBackend(vectors).top(vectors, 1, vectors[0] > 0)
    backend.top(vectors[:2], 1)
    assert used == [3, 1, 3, 1, 3]
    assert faiss.omp_get_max_threads() == before


THREADS_AFTER_SEARCH = """
import torch
import numpy as np
from roma_ds.index.faiss_backend import FaissBackend

assert torch.get_num_threads() == 2
vectors = np.eye(300, dtype=np.float32)
backend = FaissBackend(vectors)
backend.top(vectors, 1, vectors[0] > 0)
backend.within(vectors, 0.5)
backend.top(vectors, 1)
print(torch.get_num_threads())
"""


def test_a_search_leaves_torch_its_threads() -> None:
    """In a process of its own: where torch is imported first, both libraries share one setting."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", THREADS_AFTER_SEARCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2", done


def test_the_precision_of_torch_is_kept_high_for_a_search_and_given_back() -> None:
    import torch

    vectors = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        scores, places = TorchBackend(vectors).top(vectors, 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    exact = np.take_along_axis(vectors.astype(np.float64) @ vectors.T.astype(np.float64), places, 1)
    np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-4)


def refused(said: str, **changed: Any) -> None:
    given: dict[str, Any] = {
        "ids": np.array([2, 5, 9]),
        "vectors": np.eye(3, dtype=np.float32),
        "groups": np.arange(3),
    }
    with pytest.raises(UserError, match=said) as caught:
        Shard(**(given | changed), backend="torch")
    assert caught.value.fix


def test_ids_that_cannot_be_used_are_named() -> None:
    refused("id -4 is negative", ids=np.array([-4, 5, 9]))
    refused("id 5 is there twice", ids=np.array([2, 5, 5]))
    refused("id 5 is there twice", ids=np.array([5, 9, 5]))
    refused("id 5 comes after id 9: ids must ascend", ids=np.array([2, 9, 5]))
    refused("float64", ids=np.array([2.0, 5.0, 9.0]))
    refused(r"\[1, 3\]", ids=np.array([[2, 5, 9]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_cannot_be_used_are_named(bad: float) -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors[1, 2] = bad
    refused("id 5 is not finite", vectors=vectors)
    refused("id 2 and those after it are float64, not float32", vectors=np.eye(3))
    refused("3 ids, 2 embeddings", vectors=np.eye(3, dtype=np.float32)[:2])
    refused("2 prompt groups", groups=np.arange(2))
    refused("not \\[n, dimensions\\]", vectors=np.ones(3, np.float32))


def test_opposite_infinities_and_the_largest_numbers() -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors[2] = [np.inf, -np.inf, 0]
    refused("id 9 is not finite", vectors=vectors)
    largest = np.full((1, 3), np.finfo(np.float32).max, np.float32)
    assert Shard(np.array([1]), largest, np.array([0]), "torch").members.all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_that_cannot_be_used_are_named(backend: str) -> None:
    shard = Shard(np.arange(3), np.eye(3, dtype=np.float32), np.arange(3), backend)
    good = np.ones((2, 3), np.float32)
    bad = good.copy()
    bad[1, 0] = np.nan
    for queries, said in (
        (bad, "query 1 is not finite"),
        (good[:, :2], "query 0 has 2 numbers, and the embeddings have 3"),
        (good.astype(np.float64), "query 0 and those after it are float64"),
        (good[:1], "1 queries with 2 prompt groups"),
    ):
        with pytest.raises(UserError, match=said):
            shard.nearest(queries, np.zeros(2, np.int64), 1)
        with pytest.raises(UserError, match=said):
            shard.within(queries, np.zeros(2, np.int64), 0.0, 1)


def test_members_that_a_shard_does_not_hold_are_named() -> None:
    shard = Shard(np.array([2, 5, 9]), np.eye(3, dtype=np.float32), np.arange(3), "torch")
    for unknown in (3, 10, -1):
        with pytest.raises(UserError, match=f"id {unknown} is not in this part"):
            shard.set_members(np.array([2, unknown]), False)
    assert shard.members.all()
    shard.set_members(np.array([9, 2]), np.array([False, True]))
    assert shard.members.tolist() == [True, True, False]
