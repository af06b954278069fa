"""What defines each router-only control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny_run

from roma_ds.baselines import TRAINED
from roma_ds.baselines.neighbours import own_neighbours, shuffled_rows, shuffled_weights
from roma_ds.baselines.penalties import centred_logits, entropy_penalty, l1_penalty, l2_penalty
from roma_ds.errors import UserError
from roma_ds.index import Neighbourhood
from roma_ds.index.neighbourhood import ABSENT
from roma_ds.manifold.kernel import similarity
from roma_ds.manifold.weights import row_weights
from roma_ds.training.batch_order import BatchOrder, chosen_rows
from roma_ds.training.targets import ManifoldTargets

SAMPLES = 40


@pytest.fixture
def real() -> Neighbourhood:
    rng = np.random.default_rng(0)
    ids = np.array(
        [rng.choice([j for j in range(SAMPLES) if j != row], 4, replace=False) for row in range(SAMPLES)]
    )
    products = -np.sort(-rng.uniform(0.2, 0.99, ids.shape), axis=1)
    ids[3, 2:], products[3, 2:] = ABSENT, 0.0
    return Neighbourhood(ids, products)


GROUPS = np.arange(SAMPLES, dtype=np.int64)
EVERYONE = np.ones(SAMPLES, np.bool_)


def weights(found: Neighbourhood) -> np.ndarray:
    return row_weights(similarity(found.inner_products, 0.4), found.present)


def test_shuffled_weights_permute_each_row_of_w_and_keep_its_neighbours(real: Neighbourhood) -> None:
    mixed = shuffled_weights(real, EVERYONE, GROUPS, seed=1)
    assert np.array_equal(mixed.ids, real.ids)
    before, after = weights(real), weights(mixed)
    assert np.allclose(np.sort(before, axis=1), np.sort(after, axis=1))
    assert np.allclose(after.sum(axis=1), 1.0)
    assert (np.abs(before - after).max(axis=1) > 1e-6).mean() > 0.8
    assert np.array_equal(mixed.present, real.present)
    assert np.array_equal(
        shuffled_weights(real, EVERYONE, GROUPS, seed=1).inner_products, mixed.inner_products
    )


def test_shuffled_rows_give_every_sample_the_row_of_another(real: Neighbourhood) -> None:
    mixed = shuffled_rows(real, EVERYONE, GROUPS, seed=1)
    source = [
        next(
            other
            for other in range(SAMPLES)
            if np.array_equal(np.where(real.ids[other] == row, ABSENT, real.ids[other]), mixed.ids[row])
        )
        for row in range(SAMPLES)
    ]
    assert sorted(source) == list(range(SAMPLES)), "every row of W is used once"
    assert all(source[row] != row for row in range(SAMPLES))
    assert not (mixed.ids == np.arange(SAMPLES)[:, None]).any(), "nobody is their own neighbour"


def test_copies_of_a_prompt_are_left_out_of_shuffled_rows(real: Neighbourhood) -> None:
    groups = np.zeros(SAMPLES, np.int64)
    assert not shuffled_rows(real, EVERYONE, groups, seed=0).present.any()


def test_own_neighbours_pull_each_sample_to_what_is_given_for_it() -> None:
    routing = np.random.default_rng(1).random((6, 3, 4)).astype(np.float16)
    targets = ManifoldTargets(routing, [0, 2], own_neighbours(6), 0.4)
    pull = targets.of([4, 1], torch.device("cpu"))
    assert torch.allclose(pull.mean, torch.from_numpy(routing[[4, 1]][:, [0, 2]].astype(np.float32)))
    assert float(pull.spread.abs().max()) < 1e-6


def test_penalties_are_of_the_routers_logits() -> None:
    logits = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    routing = torch.softmax(logits + 3.0, dim=-1)
    centred = logits - logits.mean(dim=-1, keepdim=True)
    assert torch.allclose(centred_logits(routing), centred)
    assert torch.allclose(l1_penalty(routing), centred.abs().mean(dim=-1).sum(dim=-1))
    assert torch.allclose(l2_penalty(routing), centred.square().mean(dim=-1).sum(dim=-1))
    entropy = -(routing * routing.log()).sum(dim=-1).sum(dim=-1)
    assert torch.allclose(entropy_penalty(routing), entropy)
    # L1 of r itself would be constant: a softmax sums to 1.
    assert torch.allclose(routing.abs().sum(dim=-1), torch.ones(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("penalty", [l1_penalty, l2_penalty, entropy_penalty])
def test_penalties_have_a_finite_gradient_at_the_edge(penalty: object) -> None:
    routing = torch.tensor([[[1.0, 0.0, 0.0]]], requires_grad=True)
    penalty(routing).sum().backward()  # type: ignore[operator]
    assert routing.grad is not None and bool(torch.isfinite(routing.grad).all())


def test_variants_change_one_thing() -> None:
    run = tiny_run(Path("/model"), Path("/out"), "roma.lambda=0.7")
    changed = {name: variant.config(run) for name, variant in TRAINED.items()}
    assert changed["roma"] == run
    assert changed["router_tuning"].roma.lambda_ == 0.0
    assert changed["roma_refreshed"].roma.refresh == "epoch"
    assert changed["all_layers"].roma.layers == "all"
    pools = {name: variant.pool for name, variant in TRAINED.items() if variant.pool != "successful"}
    assert pools == {"no_success_filter": "all", "wrong_only": "wrong"}


def test_chosen_samples_are_nested_and_the_order_runs_over_them_alone() -> None:
    small, large = chosen_rows(100, 10, 5), chosen_rows(100, 30, 5)
    assert set(small) < set(large) and len(small) == 10
    assert chosen_rows(100, 10, 6) != small
    assert chosen_rows(7, None, 0) == tuple(range(7))
    order = BatchOrder(len(small), 2, 4, 0, small)
    for epoch in range(2):
        seen = [
            row
            for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
            for row in order.rows(step)
        ]
        assert sorted(seen) == sorted(small)


def test_more_samples_than_there_are_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="there are 7 training samples"):
        chosen_rows(7, 8, 0)
