from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.config import BatchSplit, TrainConfig
from roma_ds.training.batch_order import BatchOrder, batch_line, deal
from roma_ds.training.learning_rate import learning_rate_at

# (ranks, micro batch, gradient accumulation) of one global batch of 8
SPLITS = ((1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 2, 2), (8, 1, 1), (1, 1, 8))
ORDERS = st.builds(
    BatchOrder, st.integers(1, 100), st.integers(1, 4), st.sampled_from([1, 2, 8, 16]), st.integers(0, 5)
)
SCHEDULES = st.sampled_from(["cosine", "linear", "constant"])


@given(ORDERS)
def test_every_epoch_covers_every_row_once(order: BatchOrder) -> None:
    assert order.steps == order.steps_per_epoch * order.epochs
    for epoch in range(order.epochs):
        first = epoch * order.steps_per_epoch
        rows = [row for step in range(first, first + order.steps_per_epoch) for row in order.rows(step)]
        assert sorted(rows) == list(range(order.samples))
    assert all(len(order.rows(step)) >= 1 for step in range(order.steps))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = BatchOrder(50, 3, 50, 0)
    epochs = [order.rows(step) for step in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert BatchOrder(50, 3, 50, 1).rows(0) != epochs[0]
    assert BatchOrder(50, 3, 50, 0).rows(0) == epochs[0]
    assert epochs[0] != list(range(50)), "shuffled"


@given(st.integers(1, 60), st.integers(0, 5), st.data())
def test_ranks_and_micro_batches_share_the_same_global_batch(
    samples: int, seed: int, data: st.DataObject
) -> None:
    order = BatchOrder(samples, 2, 8, seed)
    step = data.draw(st.integers(0, order.steps - 1))
    for ranks, micro, accumulation in SPLITS:
        shares = [order.share(step, rank, ranks, micro, [7] * samples) for rank in range(ranks)]
        assert [len(share) for share in shares] == [accumulation] * ranks, (
            "as many forward passes on each rank"
        )
        assert all(len(rows) <= micro for share in shares for rows in share)
        together = [row for share in shares for rows in share for row in rows]
        assert sorted(together) == sorted(order.rows(step)), "each row once"


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.data())
def test_a_batch_is_shared_by_any_number_of_ranks(
    batch: int, micro: int, ranks: int, data: st.DataObject
) -> None:
    """Exactly so many samples an update, none twice; on no rank more at once than micro_batch on average, nor
    more tokens than so many of the longest; and no forward pass too many."""
    train = TrainConfig(batch=batch, micro_batch=micro)
    split = train.split(ranks)
    assert split.samples == batch and split.micro_batch <= micro
    assert (split.passes - 1) * ranks * micro < batch <= split.passes * ranks * split.micro_batch
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=2 * batch, max_size=2 * batch))
    order = BatchOrder(2 * batch, 1, batch, 0)
    shares = [order.share(1, rank, ranks, micro, lengths) for rank in range(ranks)]
    assert {len(share) for share in shares} == {split.passes}
    parts = [rows for share in shares for rows in share]
    assert sorted(row for rows in parts for row in rows) == sorted(order.rows(1))
    most = sum(sorted(lengths, reverse=True)[: split.micro_batch])
    assert all(sum(lengths[row] for row in rows) <= most for rows in parts)


def test_batches_in_words() -> None:
    given = TrainConfig(batch=32)
    assert given.split(3) == BatchSplit(samples=32, passes=2, micro_batch=6)
    assert batch_line(given, 3) == "an update has 32 samples: 3 ranks x 2 micro-batches of at most 6"
    assert batch_line(given, 4) == "an update has 32 samples: 4 ranks x 1 micro-batch of at most 8"
    before = TrainConfig(micro_batch=4, gradient_accumulation=3)
    assert before.split(2) == BatchSplit(samples=24, passes=3, micro_batch=4)
    assert batch_line(before, 2).endswith("changes what is trained, unless you set train.batch=24")


def test_a_short_last_batch_leaves_empty_micro_batches() -> None:
    order = BatchOrder(11, 1, 8, 0)
    assert len(order.rows(1)) == 3
    assert [len(rows) for rows in order.share(1, 0, 2, 2, [5] * 11)] == [1, 1]
    assert [len(rows) for rows in order.share(1, 1, 2, 2, [5] * 11)] == [1, 0]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_parts_of_a_batch_are_balanced_by_tokens(lengths: list[int], groups: int) -> None:
    parts = deal(range(len(lengths)), lengths, groups)
    assert len(parts) == groups
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    dealt = [lengths[row] for part in parts for row in part]
    assert dealt == sorted(dealt, reverse=True), "sequences of similar length lie together"
    heaviest = max(sum(lengths[row] for row in part) for part in parts)
    assert heaviest <= sum(lengths) / groups + max(lengths)


def test_long_and_short_rows_share_the_ranks_evenly() -> None:
    lengths = [40] * 4 + [10] * 16
    assert [len(part) for part in deal(range(20), lengths, 2)] == [4, 16]


@given(st.integers(1, 500), st.floats(1e-6, 1.0), st.floats(0.0, 1.0), SCHEDULES)
def test_learning_rates(steps: int, peak: float, warmup: float, schedule: str) -> None:
    rates = [learning_rate_at(step, steps, peak, warmup, schedule) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates), "every step moves something, none too far"
    rising = round(warmup * steps)
    assert all(a < b for a, b in pairwise(rates[:rising]))
    if rising < steps:
        assert rates[rising] == pytest.approx(peak), "the peak follows the warm-up"
        after = rates[rising:]
        assert all(a >= b for a, b in pairwise(after))
        if schedule == "constant":
            assert after == [peak] * len(after)
        elif len(after) > 20:
            assert after[-1] < 0.1 * peak
    else:
        assert max(rates) >= peak * steps / (steps + 1) * (1 - 1e-12)


def test_a_warm_up_never_outlasts_a_short_run() -> None:
    """Given in steps, a warm-up of 100 would keep a run of 20 near zero."""
    assert learning_rate_at(2, 20, 1.0, 0.1, "constant") == 1.0
    assert learning_rate_at(0, 1, 1.0, 0.1, "cosine") == 1.0
    assert learning_rate_at(0, 20, 1.0, 0.1, "cosine") == pytest.approx(1 / 3)


def test_schedules_written_out() -> None:
    assert [learning_rate_at(step, 4, 1.0, 0.0, "linear") for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = [learning_rate_at(step, 4, 2.0, 0.0, "cosine") for step in range(4)]
    assert cosine == pytest.approx([2.0, 1.7071067811865475, 1.0, 0.2928932188134524])
