from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import free_sample, letter_sample, letter_samples, model_config, text_sample
from transformers import AutoModelForCausalLM

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data.sample import Sample
from roma_ds.errors import UserError
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.sequences.encoding import Prompt, encode
from roma_ds.sequences.scores import Scores

ALONE = World(Ranks(), torch.device("cpu"))
TOLERANCE = 2e-5


def frozen_model(folder: Path) -> FrozenModel:
    return FrozenModel(ALONE, model_config(folder), {"zero_optimization": {"stage": 0}})


@pytest.fixture
def frozen(tiny_model: Path) -> FrozenModel:
    return frozen_model(tiny_model)


@pytest.fixture
def stock(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def score(frozen: FrozenModel, prompts: list[Prompt], batch_size: int = 4, tokens: str = "last1") -> Scores:
    found = frozen.score(prompts, tokens, batch_size, "test")
    assert found is not None
    return found


def mixed_samples() -> list[Sample]:
    source = random.Random(3)
    makers = (letter_sample, text_sample, free_sample)
    return [makers[place % 3](place, source) for place in range(21)]


@torch.no_grad()
def loglikelihood(stock: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int, bool, float]:
    """Of an answer: sum of log-probabilities, tokens, greedy match, least margin; token by token."""
    before = tokenizer(prompt)["input_ids"]
    total, margins, greedy = 0.0, [], True
    tokens = tokenizer(prompt + answer)["input_ids"][len(before) :]
    for token in tokens:
        logits = stock(input_ids=torch.tensor([before])).logits[0, -1].double()
        logprobs = logits - logits.logsumexp(dim=0)
        rest = torch.cat([logprobs[:token], logprobs[token + 1 :]])
        total += float(logprobs[token])
        margins.append(float(logprobs[token] - rest.max()))
        greedy = greedy and int(logits.argmax()) == token
        before = [*before, token]
    return total, len(tokens), greedy, min(margins)


def test_scores_equal_a_plain_loop_over_the_stock_model(
    frozen: FrozenModel, stock: Any, tokenizer: Any
) -> None:
    samples = mixed_samples()
    scores = score(frozen, encode(samples, tokenizer, 500))
    for row, sample in enumerate(samples):
        values = [loglikelihood(stock, tokenizer, sample.prompt, option)[0] for option in sample.options]
        total, count, greedy, margin = loglikelihood(stock, tokenizer, sample.prompt, sample.target)
        np.testing.assert_allclose(scores.option_loglikelihoods[row], values, atol=TOLERANCE)
        assert scores.target_loglikelihood[row] == pytest.approx(total, abs=TOLERANCE)
        assert scores.loss[row] == pytest.approx(-total / count, abs=TOLERANCE)
        if sample.options:
            best = int(np.argmax(values))
            others = values[: sample.answer] + values[sample.answer + 1 :]
            assert scores.predicted[row] == best
            assert scores.correct[row] == (best == sample.answer)
            assert scores.margin[row] == pytest.approx(values[sample.answer] - max(others), abs=2 * TOLERANCE)
        else:
            assert scores.predicted[row] == -1
            assert scores.correct[row] == greedy
            assert scores.margin[row] == pytest.approx(margin, abs=2 * TOLERANCE)
    assert scores.routing.shape == (21, 4, 8)
    assert scores.routing.dtype == np.float16


def test_a_free_text_answer_is_right_when_greedy_decoding_yields_it(
    frozen: FrozenModel, stock: Any, tokenizer: Any
) -> None:
    samples = []
    for sample in (free_sample(place, random.Random(place)) for place in range(6)):
        ids = tokenizer(sample.prompt)["input_ids"]
        out = stock.generate(
            torch.tensor([ids]), max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0
        )
        answer = " " + " ".join(tokenizer.convert_ids_to_tokens(out[0, len(ids) :]))
        samples.append(Sample(sample.id, "f", "train", sample.prompt, sample.question, (), -1, answer, ()))
    scores = score(frozen, encode(samples, tokenizer, 500))
    assert scores.correct.all()
    assert (scores.margin > 0).all()


def test_the_result_does_not_depend_on_the_batch(frozen: FrozenModel, tokenizer: Any) -> None:
    prompts = encode(mixed_samples(), tokenizer, 500)
    one, many = score(frozen, prompts, 1), score(frozen, prompts, 16)
    np.testing.assert_array_equal(one.predicted, many.predicted)
    np.testing.assert_array_equal(one.correct, many.correct)
    np.testing.assert_allclose(one.loss, many.loss, atol=1e-5)
    np.testing.assert_allclose(one.routing, many.routing, atol=1e-3)
    assert one.tokens_read == many.tokens_read


def test_the_routing_is_that_of_the_prompt_whatever_the_answer(frozen: FrozenModel, tokenizer: Any) -> None:
    sample = text_sample(0, random.Random(0))
    other = Sample(sample.id, "x", "train", sample.prompt, "", (), -1, " w1 w2 w3 w4", ())
    scores = score(frozen, encode([sample, other], tokenizer, 500), tokens="last3")
    np.testing.assert_allclose(scores.routing[0], scores.routing[1], atol=1e-3)


def always(frozen: FrozenModel, tokenizer: Any, letter: str) -> None:
    """A head whose logit is larger for `letter` than for anything else, everywhere."""
    network = frozen.routed.network
    head = network.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[tokenizer.convert_tokens_to_ids(letter)] = 1e4
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


def test_where_option_c_always_wins_accuracy_is_the_share_of_c(tiny_olmoe: Path, tokenizer: Any) -> None:
    samples = letter_samples(50)
    frozen = frozen_model(tiny_olmoe)
    prompts = encode(samples, tokenizer, 500)
    always(frozen, tokenizer, "C")
    scores = score(frozen, prompts, 8)
    assert scores.predicted.tolist() == [2] * 50
    share = np.mean([sample.answer == 2 for sample in samples])
    assert 0 < share < 1
    assert scores.correct.mean() == share
    assert scores.correct.tolist() == [sample.answer == 2 for sample in samples]


def test_of_equal_options_the_first_is_predicted(tiny_olmoe: Path, tokenizer: Any) -> None:
    frozen = frozen_model(tiny_olmoe)
    frozen.routed.network.get_output_embeddings().weight.data.zero_()
    scores = score(frozen, encode(letter_samples(9), tokenizer, 500))
    assert scores.predicted.tolist() == [0] * 9
    np.testing.assert_allclose(scores.margin, 0, atol=1e-6)


@pytest.mark.parametrize("options", [(" A", " A", " B"), (" w1 w2", " w1 w2", " w3")])
def test_options_that_read_the_same_have_the_same_score(
    tiny_olmoe: Path, tokenizer: Any, options: tuple[str, ...]
) -> None:
    choices = tuple(option.strip() for option in options)
    sample = Sample("a", "t", "train", "Question : w9 Answer :", "w9", choices, 1, options[1], options)
    scores = score(frozen_model(tiny_olmoe), encode([sample], tokenizer, 500))
    values = scores.option_loglikelihoods[0]
    assert len(values) == 3
    assert values[0] == values[1] != values[2]


def test_routers_in_and_out_again_bit_for_bit(frozen: FrozenModel, tokenizer: Any) -> None:
    prompts = encode(mixed_samples(), tokenizer, 500)
    before = score(frozen, prompts)
    weights = {layer: router.detach().clone() for layer, router in frozen.routed.routers().items()}
    generator = torch.Generator().manual_seed(0)
    tuned = {layer: torch.randn(weights[layer].shape, generator=generator) for layer in (1, 3)}

    frozen.use_routers(tuned)
    assert all(torch.equal(frozen.routed.routers()[layer], value) for layer, value in tuned.items())
    changed = score(frozen, prompts)
    assert not np.array_equal(changed.loss, before.loss)

    frozen.use_routers({2: tuned[1]})
    assert torch.equal(frozen.routed.routers()[1], weights[1]), "a layer that is not named gets back its own"
    assert torch.equal(frozen.routed.routers()[2], tuned[1])

    frozen.use_routers({})
    for layer, router in frozen.routed.routers().items():
        assert torch.equal(router, weights[layer])
    after = score(frozen, prompts)
    for name in ("target_loglikelihood", "loss", "margin", "routing", "predicted", "correct"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_tuned_routers_give_what_the_stock_model_gives_with_them(
    frozen: FrozenModel, stock: Any, tokenizer: Any
) -> None:
    sample = letter_sample(0, random.Random(5))
    tuned = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    frozen.use_routers({2: tuned})
    stock.model.layers[2].mlp.gate.weight.data.copy_(tuned)
    found = score(frozen, encode([sample], tokenizer, 500))
    wanted = [loglikelihood(stock, tokenizer, sample.prompt, option)[0] for option in sample.options]
    np.testing.assert_allclose(found.option_loglikelihoods[0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({9: torch.zeros(8, 32)}, "the router file has layer 9, the model has none"),
        (
            {1: torch.zeros(8, 31)},
            r"router of layer 1 has shape \(8, 31\) in the router file and\s+\(8, 32\)",
        ),
        ({0: torch.ones(8, 32), 1: torch.zeros(9, 32)}, r"layer 1 has shape \(9, 32\)"),
    ],
)
def test_routers_that_do_not_fit_are_refused_and_nothing_changes(
    frozen: FrozenModel, weights: dict[int, torch.Tensor], message: str
) -> None:
    before = {layer: router.detach().clone() for layer, router in frozen.routed.routers().items()}
    with pytest.raises(UserError, match=message):
        frozen.use_routers(weights)
    assert all(torch.equal(frozen.routed.routers()[layer], value) for layer, value in before.items())
