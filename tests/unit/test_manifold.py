from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_runs import model_config, stock_network

from roma_ds.errors import UserError
from roma_ds.families import detect
from roma_ds.index import Neighbourhood
from roma_ds.manifold.kernel import least_inner_product, median_sigma, similarity
from roma_ds.manifold.loss import manifold_by_pairs, manifold_term
from roma_ds.manifold.schedule import lambda_at
from roma_ds.manifold.weights import pull_targets, row_weights
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.training.targets import ManifoldTargets

CPU = torch.device("cpu")
SIGMAS = st.floats(0.05, 3.0)
SEEDS = st.integers(0, 2**32)
REDUCTIONS = st.sampled_from(["sum", "mean"])


def routing_weights(source: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    values = np.exp(2 * source.standard_normal(shape))
    return values / values.sum(axis=-1, keepdims=True)


@given(SEEDS, SIGMAS)
def test_similarity_is_the_kernel_of_the_distance(seed: int, sigma: float) -> None:
    vectors = np.random.default_rng(seed).standard_normal((6, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = similarity(vectors @ vectors.T, sigma)
    for i in range(6):
        for j in range(6):
            distance = math.dist(vectors[i], vectors[j])
            assert found[i, j] == pytest.approx(
                math.exp(-(distance**2) / (2 * sigma**2)), rel=1e-6, abs=1e-12
            )
    assert (found <= 1).all()


@given(st.floats(0.01, 1.0), st.floats(0.3, 3.0))
def test_the_least_inner_product_is_where_similarity_is_epsilon(epsilon: float, sigma: float) -> None:
    least = least_inner_product(epsilon, sigma)
    assert least <= 1
    assert float(similarity(np.array(least), sigma)) == pytest.approx(epsilon, rel=1e-6)
    assert float(similarity(np.array(least - 1e-3), sigma)) < epsilon
    assert least_inner_product(min(1.0, epsilon * 1.1), sigma) >= least, "a larger epsilon, a smaller ball"


@given(SEEDS, st.integers(1, 20), st.integers(1, 7), SIGMAS)
def test_rows_of_w_sum_to_one(seed: int, rows: int, k: int, sigma: float) -> None:
    source = np.random.default_rng(seed)
    present = source.random((rows, k)) < 0.7
    similarities = similarity(source.uniform(-1, 1, (rows, k)), sigma)
    weights = row_weights(similarities, present)
    np.testing.assert_allclose(weights.sum(axis=1), present.any(axis=1), atol=1e-12)
    assert (weights >= 0).all()
    assert not weights[~present].any()
    for row in np.flatnonzero(present.any(axis=1)):
        total = similarities[row][present[row]].sum()
        if total > 1e-300:
            np.testing.assert_allclose(
                weights[row], np.where(present[row], similarities[row], 0) / total, atol=1e-12
            )


def test_neighbours_so_far_that_similarity_underflows_count_the_same() -> None:
    similarities = similarity(np.array([[-1.0, -1.0, 0.0]]), 0.01)
    assert not similarities.any()
    weights = row_weights(similarities, np.array([[True, True, False]]))
    assert weights.tolist() == [[0.5, 0.5, 0.0]]


@settings(deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(2, 9), REDUCTIONS)
def test_the_pull_to_one_point_is_equation_7(
    seed: int, rows: int, k: int, layers: int, experts: int, reduction: str
) -> None:
    source = np.random.default_rng(seed)
    present = source.random((rows, k)) < 0.7
    weights = row_weights(source.random((rows, k)) + 1e-3, present)
    neighbours = routing_weights(source, rows, k, layers, experts)
    live = routing_weights(source, rows, layers, experts)
    mean, spread = pull_targets(weights, neighbours)
    has = torch.from_numpy(present.any(axis=1))
    term = manifold_term(
        torch.from_numpy(live).float(), torch.from_numpy(mean), torch.from_numpy(spread), has, reduction
    )
    pairs = manifold_by_pairs(
        torch.from_numpy(live), torch.from_numpy(neighbours), torch.from_numpy(weights), reduction
    )
    torch.testing.assert_close(term.double(), pairs, rtol=1e-5, atol=1e-6)
    for row in range(rows):
        by_hand = sum(
            weights[row, j]
            * np.sum((live[row] - neighbours[row, j]) ** 2)
            / (layers if reduction == "mean" else 1)
            for j in range(k)
        )
        assert float(pairs[row]) == pytest.approx(by_hand, rel=1e-9, abs=1e-12)


@given(SEEDS, REDUCTIONS)
@settings(max_examples=25, deadline=None)
def test_gradients_of_both_forms_agree_with_finite_differences_in_r(seed: int, reduction: str) -> None:
    source = np.random.default_rng(seed)
    weights = row_weights(source.random((3, 4)) + 1e-3, np.ones((3, 4), np.bool_))
    neighbours = routing_weights(source, 3, 4, 2, 5)
    live = torch.from_numpy(routing_weights(source, 3, 2, 5)).requires_grad_(True)
    mean = torch.from_numpy(np.einsum("nk,nkme->nme", weights, neighbours))
    spread = torch.from_numpy(np.einsum("nk,nkme->nm", weights, (neighbours - mean.numpy()[:, None]) ** 2))
    has = torch.ones(3, dtype=torch.bool)
    pairs = (torch.from_numpy(neighbours), torch.from_numpy(weights), reduction)
    (one,) = torch.autograd.grad(manifold_term(live, mean, spread, has, reduction).sum(), live)
    (other,) = torch.autograd.grad(manifold_by_pairs(live, *pairs).sum(), live)
    torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(lambda r: manifold_term(r, mean, spread, has, reduction), live)
    assert torch.autograd.gradcheck(lambda r: manifold_by_pairs(r, *pairs), live)


def central_difference(
    value: Callable[[], float], weight: torch.Tensor, place: tuple[int, int], h: float
) -> float:
    kept = float(weight[place])
    with torch.no_grad():
        weight[place] = kept + h
        above = value()
        weight[place] = kept - h
        below = value()
        weight[place] = kept
    return (above - below) / (2 * h)


@pytest.mark.parametrize("tokens", ["last1", "last3"])
def test_gradient_at_the_routers_of_a_real_model_equals_finite_differences(
    tiny_model: Path, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the network: a router also moves the hidden states that later routers see."""
    network = stock_network(model_config(tiny_model)).double()
    network.config._experts_implementation = "eager"
    # Norms and routers compute in torch.float32 by name, too coarse for differences.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    routed = RoutedLM(network, detect(network), (1, 2, 3)).attach()
    sequences = [Encoded(row, tuple(range(5 + row, 12 + 2 * row)), (12,)) for row in range(3)]
    batch = collate(sequences, tokens)
    source = np.random.default_rng(0)
    mean, spread = (
        torch.from_numpy(routing_weights(source, 3, 3, 8)),
        torch.from_numpy(source.random((3, 3))),
    )
    has = torch.tensor([True, False, True])
    inputs = batch.inputs(CPU)

    def term() -> torch.Tensor:
        # The routing in the output is rounded to float32; this one is not.
        raw: list[torch.Tensor] = []
        routed(**inputs)
        for layer in (1, 2, 3):
            places = batch.routing_positions
            read = batch.packing.row_of[places] if layer == routed.last_layer else places
            chosen = torch.softmax(routed.raw_logits[layer][read], dim=-1)
            raw.append((chosen * batch.routing_weights[..., None]).sum(dim=1))
        return manifold_term(torch.stack(raw, dim=1), mean, spread, has, "sum").sum()

    def live() -> torch.Tensor:
        return manifold_term(routed(**inputs).routing, mean.float(), spread.float(), has, "sum").sum()

    weights = routed.routers()
    for weight in weights.values():
        weight.requires_grad_(True)
    exact = torch.autograd.grad(term(), list(weights.values()))
    as_trained = torch.autograd.grad(live(), list(weights.values()))
    for (layer, weight), gradient, rounded in zip(weights.items(), exact, as_trained, strict=True):
        assert float(gradient.abs().max()) > 1e-3, "the term reaches the router"
        torch.testing.assert_close(rounded, gradient, rtol=1e-4, atol=1e-6)
        largest = gradient.abs().flatten().topk(3).indices.tolist()
        for flat in (*largest, *source.integers(0, weight.numel(), 5).tolist()):
            place = (flat // 32, flat % 32)
            with torch.no_grad():
                found = central_difference(lambda: float(term()), weight.data, place, 1e-6)
            assert float(gradient[place]) == pytest.approx(found, rel=1e-5, abs=1e-8), (layer, place)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_an_empty_neighbourhood_gives_exactly_zero(reduction: str) -> None:
    source = np.random.default_rng(0)
    routing = np.asarray(routing_weights(source, 4, 3, 6), np.float16)
    ids = np.array([[1, 2], [-1, -1], [0, -1], [-1, -1]])
    targets = ManifoldTargets(routing, [0, 2], Neighbourhood(ids, np.where(ids < 0, 0.0, 0.9)), 0.4)
    pull = targets.of(range(4), CPU)
    assert pull.present.tolist() == [True, False, True, False]
    live = torch.from_numpy(routing_weights(source, 4, 2, 6)).float().requires_grad_(True)
    term = manifold_term(live, pull.mean, pull.spread, pull.present, reduction)
    (gradient,) = torch.autograd.grad(term.sum(), live)
    assert term[1] == term[3] == 0
    assert not gradient[1].any()
    assert not gradient[3].any()
    assert gradient[0].any()
    assert gradient[2].any()


def test_targets_take_the_chosen_layers_of_the_right_neighbours() -> None:
    source = np.random.default_rng(1)
    routing = routing_weights(source, 5, 4, 3).astype(np.float16)
    ids = np.array([[3, 1], [0, -1], [4, 0], [2, 1], [-1, -1]])
    products = np.where(ids < 0, 0.0, source.uniform(0.2, 1.0, ids.shape))
    pull = ManifoldTargets(routing, [1, 3], Neighbourhood(ids, products), 0.5).of([2, 0, 1], CPU)
    for place, row in enumerate([2, 0, 1]):
        sims = [
            math.exp(-(2 - 2 * p) / (2 * 0.5**2))
            for p, j in zip(products[row], ids[row], strict=True)
            if j >= 0
        ]
        members = [routing[j][[1, 3]].astype(np.float64) for j in ids[row] if j >= 0]
        wanted = sum(s / sum(sims) * r for s, r in zip(sims, members, strict=True))
        np.testing.assert_allclose(pull.mean[place].numpy(), wanted, atol=1e-6)
        spread = sum(
            s / sum(sims) * ((r - wanted) ** 2).sum(axis=-1) for s, r in zip(sims, members, strict=True)
        )
        np.testing.assert_allclose(pull.spread[place].numpy(), spread, atol=1e-6)


@given(st.integers(1, 400), st.just(0.0) | st.floats(1e-9, 10.0), st.floats(0.0, 1.0))
def test_lambda_rises_to_its_peak_and_stays(steps: int, peak: float, warmup: float) -> None:
    values = [lambda_at(step, steps, peak, warmup) for step in range(steps)]
    assert all(a <= b for a, b in pairwise(values))
    assert all(0 <= value <= peak for value in values)
    assert (values[0] > 0) == (peak > 0), "on from the first step"
    rising = round(warmup * steps)
    assert values[rising:] == [peak] * (steps - rising), "a warm-up never outlasts its share of the run"
    if rising:
        assert values[0] == pytest.approx(peak / (rising + 1))


@given(SEEDS, st.integers(2, 40))
def test_median_sigma_is_a_distance_of_the_rows_and_depends_on_the_seed_alone(seed: int, rows: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sigma = median_sigma(vectors, 3, pairs=500)
    assert sigma == median_sigma(vectors, 3, pairs=500)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[~np.eye(rows, dtype=bool)]
    assert distances.min() - 1e-6 <= sigma <= distances.max() + 1e-6


def test_median_sigma_leaves_out_copies_and_refuses_copies_alone() -> None:
    copies = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    assert median_sigma(copies, 0) == pytest.approx(math.sqrt(2))
    for same in (copies[:9], copies[:1]):
        with pytest.raises(UserError, match="different embeddings"):
            median_sigma(same, 0)


def test_median_sigma_is_the_median_over_pairs_of_different_rows() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[~np.eye(60, dtype=bool)]
    assert median_sigma(vectors, 0) == pytest.approx(float(np.median(distances)), abs=0.02)
    assert median_sigma(np.array([[1.0, 0.0], [0.0, 1.0]]), 0) == pytest.approx(math.sqrt(2)), (
        "never a row with itself"
    )
