"""Updates, digests and payloads of the live index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.index import digest
from roma_ds.index.payload import Payload, Placement
from roma_ds.index.updates import ADD, REFRESH, REMOVE, UpdateError, Updates, merged
from roma_ds.training.live_targets import Outcomes

seeds = st.integers(0, 2**32)


def random_rows(seed: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    ids = source.choice(10 * count + 1, count, replace=False)
    return ids, source.standard_normal((count, width)).astype(np.float32)


@given(seeds, st.integers(0, 20), st.integers(1, 9))
def test_a_digest_does_not_depend_on_order_and_adds_up(seed: int, count: int, width: int) -> None:
    ids, rows = random_rows(seed, count, width)
    whole = digest.of_rows(ids, rows)
    order = np.random.default_rng(seed).permutation(count)
    assert digest.of_rows(ids[order], rows[order]) == whole
    half = count // 2
    parts = digest.of_rows(ids[:half], rows[:half]) + digest.of_rows(ids[half:], rows[half:])
    assert parts & digest.MASK == whole
    assert digest.of_ids(ids[order]) == digest.of_ids(ids)


@given(seeds, st.integers(1, 10), st.integers(1, 9), st.data())
def test_any_flipped_bit_and_any_swapped_id_changes_a_digest(
    seed: int, count: int, width: int, data: st.DataObject
) -> None:
    ids, rows = random_rows(seed, count, width)
    whole = digest.of_rows(ids, rows)
    place = data.draw(st.integers(0, rows.nbytes - 1))
    changed = rows.copy()
    changed.view(np.uint8).reshape(-1)[place] ^= 1 << data.draw(st.integers(0, 7))
    assert digest.of_rows(ids, changed) != whole
    assert digest.of_rows(ids + 1, rows) != whole
    if count > 1:
        assert digest.of_rows(ids[::-1], rows) != whole


@given(st.integers(1, 8), st.integers(0, 40))
def test_every_id_has_one_owner_and_a_place_of_its_own(ranks: int, count: int) -> None:
    placements = [Placement(rank, ranks, sharded=True) for rank in range(ranks)]
    owned = np.concatenate([placement.own(count) for placement in placements])
    assert sorted(owned.tolist()) == list(range(count))
    for placement in placements:
        own = placement.own(count)
        assert placement.mine(own).all()
        assert placement.place(own).tolist() == list(range(len(own)))
    replicated = Placement(ranks - 1, ranks, sharded=False)
    assert replicated.place(replicated.own(count)).tolist() == list(range(count))
    assert replicated.mine(replicated.own(count)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_payload_gives_back_what_its_type_holds(dtype: Any) -> None:
    payload = Payload(Placement(1, 3, sharded=True), 11, 5, dtype)
    ids = payload.placement.own(11)
    vectors = np.random.default_rng(0).standard_normal((len(ids), 5)).astype(np.float32)
    payload.write(ids, payload.encoded(vectors))
    wanted = torch.from_numpy(vectors).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(payload.decoded(payload.read(ids[::-1])), wanted[::-1])
    assert payload.rows.nbytes == len(ids) * 5 * (4 if dtype == "float32" else 2)


def updates(ids: list[int], ops: list[int], width: int = 2) -> Updates:
    carried = sum(op != REMOVE for op in ops)
    return Updates(np.array(ids, np.int64), np.array(ops, np.uint8), np.zeros((carried, width), np.float32))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (updates([-3], [ADD]), "id -3 is no sample"),
        (updates([6], [ADD]), "id 6 is no sample"),
        (updates([0], [ADD]), "id 0 is added and already in S"),
        (updates([3], [REMOVE]), "id 3 has the operation remove and is not in S"),
        (updates([3], [REFRESH]), "id 3 has the operation refresh and is not in S"),
        (updates([3], [7]), "id 3 has an operation"),
        (updates([4, 4], [ADD, ADD]), "id 4 is updated twice"),
        (updates([4], [ADD], width=3), "shape (1, 3)"),
        (Updates(np.array([5]), np.array([ADD], np.uint8), np.full((1, 2), np.inf, np.float32)), "id 5 "),
    ],
)
def test_what_cannot_be_applied_is_refused_with_the_id(wrong: Updates, words: str) -> None:
    members = np.array([True, True, True, False, False, False])
    with pytest.raises(UpdateError) as caught:
        wrong.check(members, 2)
    assert words in caught.value.message


def test_what_can_be_applied_is_not_refused() -> None:
    members = np.array([True, True, True, False])
    updates([3, 0, 2], [ADD, REMOVE, REFRESH]).check(members, 2)
    Updates.none(2).check(members, 2)


def test_ranks_updates_are_put_in_one_order() -> None:
    ids, ops = merged(
        [np.array([[9, ADD], [2, REMOVE]]), np.empty((0, 2), np.int64), np.array([[4, REFRESH]])]
    )
    assert ids.tolist() == [2, 4, 9]
    assert ops.tolist() == [REMOVE, REFRESH, ADD]
    with pytest.raises(UpdateError, match="id 4"):
        merged([np.array([[4, ADD]]), np.array([[4, REMOVE]])])


def test_outcomes_become_updates() -> None:
    outcomes = Outcomes(1, 2)
    members = np.array([True, True, False, False, True])
    for row, right in ((4, True), (0, False), (2, True), (3, False)):
        outcomes.add(row, right, np.array([row, row], np.float32))
    found = outcomes.updates(members)
    assert found.ids.tolist() == [0, 2, 4]
    assert found.ops.tolist() == [REMOVE, ADD, REFRESH]
    assert found.vectors[:, 0].tolist() == [2.0, 4.0]
    found.check(members, 2)
    outcomes.clear()
    assert not len(outcomes.updates(members).ids)
