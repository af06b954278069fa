"""Routing given from outside: at the router's own weights the same function, and a dense gradient."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mechanism_models import SEQUENCES, checkpoint, part
from tiny_runs import letter_samples, model_config, text_sample

from roma_ds.baselines.descent import Descent, descend
from roma_ds.baselines.scoring import score
from roma_ds.baselines.test_time import MIXES, Questions, Reference, TestTime
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.errors import UserError
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.network.routed import RoutedLM
from roma_ds.network.steered import Steering, top_k_weights
from roma_ds.network.tail import tail_of
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Prompt, encode
from roma_ds.sequences.request_set import requests_of
from roma_ds.training.step import task_term

CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)
LAYERS = (2, 3)


@pytest.fixture
def routed(tiny_model: Path) -> RoutedLM:
    network, layout = load_part(ALONE, model_config(tiny_model), 4, None, None)
    return RoutedLM(network, layout, layout.layers).attach()


def questions(prompts: list[Prompt], routed: RoutedLM) -> Questions:
    requests = requests_of(prompts)
    feed = Feed(requests.sequences, "last1")
    with torch.no_grad():
        batch = feed.batch(list(requests.targets))
        routing = routed(**batch.inputs(CPU)).routing
    return Questions(requests, feed, routing[:, list(LAYERS)].numpy())


@pytest.fixture
def letters(routed: RoutedLM, tokenizer: Any) -> Questions:
    return questions(encode(letter_samples(10), tokenizer, 500), routed)


def test_the_routers_own_weights_give_the_same_logits(routed: RoutedLM, letters: Questions) -> None:
    batch = letters.batch(range(10))
    with torch.no_grad():
        plain = routed(**batch.inputs(CPU)).logits
        steering = Steering(routed, LAYERS)
        given = torch.from_numpy(letters.routing)
        assert torch.allclose(steering.forward(batch, given, CPU).logits, plain, atol=1e-5)
        other = torch.softmax(torch.randn_like(given), dim=-1)
        assert not torch.allclose(steering.forward(batch, other, CPU).logits, plain, atol=1e-3)
        assert torch.equal(routed(**batch.inputs(CPU)).logits, plain), "without weights the router decides"
        steering.close()
        assert torch.equal(routed(**batch.inputs(CPU)).logits, plain)


def test_every_experts_weight_has_the_gradient_of_the_dense_mixture(
    routed: RoutedLM, letters: Questions
) -> None:
    """In the last steered layer, moving the output by h expert(x) moves the loss by h times the gradient."""
    steering = Steering(routed, LAYERS)
    batch = letters.batch([4])
    given = torch.from_numpy(letters.routing[[4]]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        task_term(steering.forward(batch, given, CPU).logits, batch, 1).sum(), given
    )
    assert bool((gradient != 0).all()), "experts that are not chosen have one too"
    experts = steering._modules[3]
    for expert in range(given.shape[2]):
        losses = []
        for h in (1e-2, -1e-2):

            def add(module: Any, inputs: Any, output: Any, expert: int = expert, h: float = h) -> Any:
                rows = steering.routed.rows_of(3, steering._positions)
                index = torch.full((len(rows), 1), expert)
                return output.index_add(
                    0, rows, module.forward(inputs[0][rows], index, torch.full((len(rows), 1), h))
                )

            hook = experts.register_forward_hook(add)
            with torch.no_grad():
                losses.append(float(task_term(steering.forward(batch, given, CPU).logits, batch, 1)))
            hook.remove()
        assert float(gradient[0, 1, expert]) == pytest.approx(
            (losses[0] - losses[1]) / 2e-2, rel=0.03, abs=5e-5
        )
    steering.close()


def test_top_k_weights_are_those_of_a_router() -> None:
    routing = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
    index, values = top_k_weights(routing, 2, True, 1.0)
    assert index.tolist() == [[1, 2]] and torch.allclose(values, torch.tensor([[2 / 3, 1 / 3]]))
    _, values = top_k_weights(routing, 2, False, 2.0)
    assert torch.allclose(values, torch.tensor([[1.0, 0.5]]))


def test_descent_lowers_each_loss_and_stays_a_distribution() -> None:
    goal = torch.softmax(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    start = torch.full((3, 2, 5), 0.2)

    def loss(routing: torch.Tensor) -> torch.Tensor:
        return (routing - goal).square().sum(dim=(1, 2))

    found, steps = descend(loss, start, Descent(lr=0.2, steps=50, tolerance=1e-9))
    assert bool((loss(found) < 0.01 * loss(start)).all())
    assert torch.allclose(found.sum(dim=-1), torch.ones(3, 2)) and bool((found >= 0).all())
    assert 5 < steps <= 50
    _, few = descend(loss, start, Descent(lr=0.2, steps=50, tolerance=0.5))
    assert few == 2, "it stops when the mean loss stands still"
    core, _ = descend(loss, goal.clone().flip(-1), Descent(lr=0.1, steps=1, core_experts=2))
    moved = (core / goal.flip(-1) - (core / goal.flip(-1)).median(dim=-1, keepdim=True).values).abs() > 1e-4
    assert int(moved.sum(dim=-1).max()) <= 2


def test_learning_rate_of_c3po_is_a_cosine() -> None:
    descent = Descent(lr=1e-2, steps=10, final_lr=1e-5)
    assert descent.rate(0) == pytest.approx(1e-2) and descent.rate(9) == pytest.approx(1e-5)
    assert all(descent.rate(step) > descent.rate(step + 1) for step in range(9))


def test_oracle_routing_lowers_the_loss_of_the_true_answer(routed: RoutedLM, letters: Questions) -> None:
    test = TestTime(Steering(routed, LAYERS), letters, CPU, 4)
    own = torch.from_numpy(letters.routing)
    found, steps = test.oracle(letters, range(10), Descent(lr=0.5, steps=10))
    with torch.no_grad():
        loss = test.answer_loss(letters, range(10))
        before = loss(own)
        after = loss(torch.from_numpy(found))
    assert float(after.mean()) < float(before.mean())
    assert steps == [10, 10, 10]
    scores = test.scores(found, "test")
    assert scores.loss == pytest.approx(after.numpy(), abs=1e-4)
    assert np.allclose(scores.routing, found, atol=1e-3)
    test.steering.close()


def test_c3po_sees_the_neighbours_and_never_the_questions_answers(routed: RoutedLM, tokenizer: Any) -> None:
    solved = questions(encode(letter_samples(12, seed=3), tokenizer, 500), routed)
    prompts = encode(letter_samples(6, seed=4), tokenizer, 500)
    asked = questions(prompts, routed)
    rng = np.random.default_rng(0)
    reference = Reference(solved, rng.integers(0, 12, (6, 3)), rng.uniform(0.1, 1.0, (6, 3)))
    found = {}
    for turned in (False, True):
        if turned:
            others = [
                replace(one, answer=(one.answer + 1) % 4, target=one.options[(one.answer + 1) % 4])
                for one in prompts
            ]
            asked = questions(others, routed)
        test = TestTime(Steering(routed, LAYERS), asked, CPU, 4)
        descended, _ = test.descent(reference, Descent(lr=0.3, steps=4))
        mixed, chosen = test.regression(reference)
        found[turned] = descended, mixed
        assert sum(chosen.values()) == 6 and set(chosen) == {str(mix) for mix in MIXES}
        own = torch.from_numpy(asked.routing)
        with torch.no_grad():
            loss = test.neighbour_loss(reference, range(6))
            before = loss(own)
            for routing in (descended, mixed):
                after = loss(torch.from_numpy(routing))
                assert float(after.mean()) <= float(before.mean()) + 1e-4
        assert test.tokens > 0
        test.steering.close()
    assert np.array_equal(found[False][0], found[True][0])
    assert np.array_equal(found[False][1], found[True][1])


def test_options_of_several_tokens_are_steered_alike(routed: RoutedLM, tokenizer: Any) -> None:
    source = random.Random(0)
    prompts = encode([text_sample(place, source) for place in range(5)], tokenizer, 500)
    asked = questions(prompts, routed)
    test = TestTime(Steering(routed, LAYERS), asked, CPU, 4)
    steered = test.scores(asked.routing, "test")
    test.steering.close()

    def forward(numbers: Any, batch: Any) -> Any:
        output = routed(**batch.inputs(CPU))
        return output.logits, output.routing

    plain = score(asked.requests, asked.feed, 4, forward, "plain")
    for ours, theirs in zip(steered.option_loglikelihoods, plain.option_loglikelihoods, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("tokens", ["last1", "last3", "middle3", "first1"])
def test_the_tail_alone_gives_what_the_whole_batch_does(
    routed: RoutedLM, tokenizer: Any, tokens: str
) -> None:
    """Logits, routing and the gradient at given weights, and without given ones too."""
    source = random.Random(1)
    samples = [*letter_samples(4), *(text_sample(place, source) for place in range(4))]
    requests = requests_of(encode(samples, tokenizer, 500))
    batch = Feed(requests.sequences, tokens).batch(list(requests.targets))
    tail = tail_of(routed, batch, CPU)
    assert tail.tokens == batch.tokens if tokens == "first1" else tail.tokens < batch.tokens
    random_weights = torch.randn(8, len(LAYERS), routed.layout.experts, generator=torch.manual_seed(2))
    found = []
    for one in (batch, tail):
        steering = Steering(routed, LAYERS)
        given = torch.softmax(random_weights, dim=-1).requires_grad_(True)
        output = steering.forward(one, given, CPU)
        (gradient,) = torch.autograd.grad(task_term(output.logits, one, 8).sum(), given)
        steering.close()
        with torch.no_grad():
            plain = routed(**one.inputs(CPU))
        found.append([output.logits, output.routing, gradient, plain.logits, plain.routing])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    assert float((found[0][0] - found[0][3]).abs().max()) > 5e-5, "the given weights count"


@pytest.mark.parametrize("model_type", ["qwen3_next", "hunyuan_v1_moe", "granitemoehybrid"])
def test_a_router_s_own_weights_given_from_outside_change_nothing(model_type: str) -> None:
    """In rows, and where a layer chooses more experts than another."""
    routed, batch = part(checkpoint(model_type)), collate(SEQUENCES, "last1")
    with torch.no_grad():
        wanted = routed(**batch.inputs(CPU))
        steering = Steering(routed, routed.layers[-2:])
        found = steering.forward(batch, wanted.routing[:, -2:], CPU)
        steering.close()
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-5)


REFUSED = {
    "gemma4_text": "or weigh them otherwise",
    "dbrx": "or weigh them otherwise",
    "mistral4": "do not choose the largest",
    "deepseek_v2": "do not choose the largest",
    "longcat_flash": "what is no expert",
    "zaya": "what is no expert",
    "lfm2_moe": "score by sigmoid",
}
"""Types whose routers do more than take the largest of a softmax, and what is said of them."""


@pytest.mark.parametrize("model_type", REFUSED)
def test_routing_cannot_be_given_to_routers_that_do_more(model_type: str) -> None:
    routed, batch = part(checkpoint(model_type)), collate(SEQUENCES, "last1")
    with torch.no_grad():
        own = routed(**batch.inputs(CPU)).routing
        with pytest.raises(UserError, match=REFUSED[model_type]) as caught:
            Steering(routed, routed.layers[-2:]).forward(batch, own[:, -2:], CPU)
    assert "leave oracle routing" in str(caught.value.fix)
