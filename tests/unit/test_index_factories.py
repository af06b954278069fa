from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.index.factories import check_factory, filled_index, inverted_lists, restricts
from roma_ds.index.neighbourhood import ABSENT
from roma_ds.index.shard import Shard, measured_recall

USED_WHILE_REFRESHED = (
    "Flat",
    "IVF8,Flat",
    "IVF8,PQ4x4",
    "IVF8,PQ4x4fs",
    "IVF8,SQ8",
    "IVF8_HNSW4,Flat",
    "PCA8,IVF8,Flat",
    "SQ8",
)
USED_WHEN_NOT = ("HNSW8", "PQ4x4", "IVF8,RQ2x4")


def clustered(rows: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around a few directions, as embeddings of prompts are."""
    source = np.random.default_rng(seed)
    vectors = source.standard_normal((12, dim))[source.integers(0, 12, rows)]
    vectors = vectors + 0.4 * source.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("factory", USED_WHILE_REFRESHED + USED_WHEN_NOT)
def test_only_members_in_the_order_of_exact_products(factory: str, share: float) -> None:
    vectors = clustered(800)
    ids = 5 * np.arange(800) + 3
    groups = np.arange(800) // 2
    members = np.random.default_rng(1).random(800) < share
    shard = Shard(
        ids, vectors, groups, "faiss", factory, members=members, refreshed=factory in USED_WHILE_REFRESHED
    )
    asked = np.arange(0, 800, 40)
    for found in (
        shard.nearest(vectors[asked], groups[asked], 6),
        shard.within(vectors[asked], groups[asked], 0.8, 6),
    ):
        assert found.present.any()
        places = np.searchsorted(ids, np.maximum(found.ids, 3))
        assert members[places][found.present].all()
        assert (groups[places] != groups[asked][:, None])[found.present].all()
        products = (vectors[places].astype(np.float64) * vectors[asked][:, None]).sum(axis=2)
        np.testing.assert_allclose(found.inner_products, np.where(found.present, products, 0), atol=1e-12)
        for row in found.ids:
            present = row[row != ABSENT].tolist()
            assert row.tolist() == present + [ABSENT] * (6 - len(present))
            assert len(set(present)) == len(present)
        steps = np.diff(np.where(found.present, found.inner_products, -9.0), axis=1)
        assert (steps <= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.1, 1.0]), st.integers(1, 20))
def test_lists_without_enough_members_are_not_the_end(seed: int, share: float, k: int) -> None:
    """An inverted file looks into a few lists first; with few members there, into all."""
    vectors = clustered(400, 8, seed % 5)
    groups = np.arange(400)
    members = np.random.default_rng(seed).random(400) < share
    shard = Shard(groups, vectors, groups, "faiss", "IVF10,Flat", members=members, refreshed=True)
    found = shard.nearest(vectors[:30], groups[:30], k)
    wanted = np.minimum(k, members.sum() - members[:30])
    assert found.present.sum(axis=1).tolist() == wanted.tolist()


@pytest.mark.parametrize("factory", USED_WHILE_REFRESHED)
def test_types_for_sets_that_change(factory: str) -> None:
    index = filled_index(clustered(800), factory, refreshed=True)
    assert restricts(index)
    assert index.ntotal == 800
    assert (inverted_lists(index) is not None) == ("IVF" in factory)


@pytest.mark.parametrize("factory", ["HNSW32", "HNSW32,Flat", "HNSW16_SQ8", "NSG8,Flat"])
def test_graphs_are_refused_for_sets_that_change(factory: str) -> None:
    with pytest.raises(
        UserError, match=r"cannot follow a set that changes.*nothing can be removed"
    ) as caught:
        filled_index(clustered(800), factory, refreshed=True)
    assert "roma.refresh=never" in str(caught.value.fix)
    filled_index(clustered(800), "HNSW8", refreshed=False)


@pytest.mark.parametrize("factory", ["PQ4x4", "IVF8,PQ4x4,RFlat", "Flat,RFlat", "IVF8,RQ2x4"])
def test_types_without_selection_are_refused_for_sets_that_change(factory: str) -> None:
    with pytest.raises(UserError, match="cannot search among the members") as caught:
        filled_index(clustered(800), factory, refreshed=True)
    assert "Flat (exact)" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("", "could not parse"),
        ("Flatt", "could not parse"),
        ("IVF8", "could not parse"),
        ("IVFx,Flat", "could not parse"),
        ("ivf8,flat", "could not parse"),
        ("IVF0,Flat", "no lists"),
        ("IVF8,PQ5", "multiple of the number of subquantizers"),
        ("IVF8,PQ4x40", "nbits"),
        ("IDMap,Flat", "ids are kept outside"),
        ("LSH", "METRIC_L2"),
    ],
)
@pytest.mark.parametrize("refreshed", [False, True])
def test_names_that_are_no_type_are_refused_with_the_fix(factory: str, reason: str, refreshed: bool) -> None:
    with pytest.raises(UserError) as caught:
        filled_index(clustered(800), factory, refreshed)
    assert f"index.factory {factory!r}" in caught.value.message
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.fix is not None
    # What the fix names can be used.
    for offered in ("IVF20,Flat", "IVF20,PQ16"):
        assert offered in caught.value.fix
    filled_index(clustered(800), "IVF20,Flat", refreshed)


@pytest.mark.parametrize(
    ("factory", "rows", "wanted"),
    [
        ("IVF8,Flat", 311, 312),
        ("IVF8,PQ4x4", 623, 624),
        ("IVF8,PQ4", 800, 9984),
        ("PCA8,IVF8,PQ4x4", 623, 624),
        # The rotation is learned with 8 bits a piece, whatever the index has.
        ("OPQ4,IVF8,PQ4x4", 800, 9984),
        ("IVF64_HNSW4,Flat", 2495, 2496),
        ("IVF8,Flat", 0, 312),
    ],
)
def test_too_few_vectors_are_refused_before_faiss_complains(
    factory: str, rows: int, wanted: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=f"takes {wanted} vectors, and there are {rows}") as caught:
        filled_index(clustered(rows), factory, refreshed=True)
    assert "index.factory=Flat" in str(caught.value.fix)
    if wanted < 3000:
        assert filled_index(clustered(wanted), factory, refreshed=True).ntotal == wanted
    assert "WARNING" not in "".join(capfd.readouterr())


def test_torch_has_one_type() -> None:
    vectors, groups = clustered(400), np.arange(400)
    shard = Shard(groups, vectors, groups, "torch", "IVF8,Flat")
    with pytest.raises(UserError, match="torch backend does not have") as caught:
        shard.nearest(vectors[:2], groups[:2], 1)
    assert "index.backend=faiss" in str(caught.value.fix)


def test_recall_is_measured_against_the_truth() -> None:
    """Against plain sorting, and the same again from the same seed."""
    vectors = clustered(2000)
    groups = np.arange(2000)
    members = groups % 3 > 0
    shard = Shard(groups, vectors, groups, "faiss", "IVF32,PQ4x4", members=members, refreshed=True)
    recall = measured_recall(shard, vectors, groups, 5, sample=2000)
    found = shard.nearest(vectors, groups, 5)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    products[:, ~members] = -np.inf
    np.fill_diagonal(products, -np.inf)
    truth = np.argsort(-products, axis=1, kind="stable")[:, :5]
    hits = sum(len(set(a) & set(b)) for a, b in zip(found.ids.tolist(), truth.tolist(), strict=True))
    assert recall == pytest.approx(hits / truth.size)
    assert 0.2 < recall < 0.999
    sampled = [measured_recall(shard, vectors, groups, 5) for _ in range(2)]
    assert sampled[0] == sampled[1] == pytest.approx(recall, abs=0.08)
    assert measured_recall(shard, vectors, groups, 5, seed=1) != sampled[0]


def test_recall_of_what_misses_nothing() -> None:
    vectors = np.repeat(clustered(100), 8, axis=0)
    groups = np.arange(800)
    shard = Shard(groups, vectors, groups, "faiss", members=groups % 2 > 0)
    assert measured_recall(shard, vectors, groups, 5) == 1.0
    # Of equal vectors any will do: an inverted file finds others among them than the smallest ids.
    lists = Shard(groups, vectors, groups, "faiss", "IVF1,Flat", members=groups % 2 > 0)
    assert measured_recall(lists, vectors, groups, 3) == 1.0
    shard.members[:] = False
    assert measured_recall(shard, vectors, groups, 5) == 1.0
    assert measured_recall(shard, vectors[:0], groups[:0], 5) == 1.0


def test_a_better_index_has_a_better_recall() -> None:
    vectors, groups = clustered(2000), np.arange(2000)
    recall = {
        factory: measured_recall(Shard(groups, vectors, groups, "faiss", factory), vectors, groups, 5)
        for factory in ("Flat", "IVF32,Flat", "IVF32,PQ4x4")
    }
    assert recall["Flat"] == 1.0 >= recall["IVF32,Flat"] > 0.9 > recall["IVF32,PQ4x4"]


@pytest.mark.parametrize("factory", ["PQ8x4fs", "PCA8,PQ4x4fs", "OPQ8,PQ8x4fs", "NSG8,Flat"])
def test_types_without_a_radius_are_refused_before_there_are_vectors(factory: str) -> None:
    with pytest.raises(UserError, match=r"cannot search by roma\.epsilon") as caught:
        check_factory(factory, 16, None, refreshed=False, has_radius=True)
    assert "use roma.neighbours" in str(caught.value.fix)
    check_factory(factory, 16, None, refreshed=False, has_radius=False)


@pytest.mark.parametrize("factory", [*USED_WHILE_REFRESHED, "OPQ8_16,IVF512,PQ8"])
def test_types_that_can_are_let_through(factory: str) -> None:
    check_factory(factory, 16, None, refreshed=True, has_radius=True)
    check_factory(factory, None, None, refreshed=True, has_radius=False)


def test_what_is_known_of_the_vectors_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_factory("IVF8,PQ5", 20, None, refreshed=False, has_radius=False)
    with pytest.raises(UserError, match="multiple of the number of subquantizers"):
        check_factory("IVF8,PQ5", 16, None, refreshed=False, has_radius=False)
    check_factory("IVF8,Flat", 16, 312, refreshed=False, has_radius=False)
    with pytest.raises(UserError, match="takes 312 vectors, and there are 311"):
        check_factory("IVF8,Flat", 16, 311, refreshed=False, has_radius=False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EnvironmentFault, match="no FAISS is installed") as caught:
        check_factory("Flat", None, None, refreshed=False, has_radius=False)
    assert "roma_ds[cpu]" in str(caught.value.fix)
