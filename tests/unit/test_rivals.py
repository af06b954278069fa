"""What defines each rival: what it trains, how much of it, and that it starts as the base model."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import letter_samples, model_config, stock_network, tiny_run
from torch import nn

from roma_ds.baselines.adapters import MIXED, LoraMixture, add_adapters, matched_plan, numbers_of, rank_plan
from roma_ds.baselines.in_context import with_examples
from roma_ds.baselines.methods import METHODS
from roma_ds.baselines.networks import Build, Rival
from roma_ds.baselines.padded_network import PaddedNetwork
from roma_ds.baselines.rivals import RIVALS, train_rival
from roma_ds.baselines.variants import TRAINED
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config.chat import ChatConfig
from roma_ds.data.chat import ChatTemplate, templated
from roma_ds.data.templates import render
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.encoding import Prompt, encode
from roma_ds.sequences.request_set import requests_of
from roma_ds.testing.chats import OLMOE, chat_tokenizer

CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)
ROUTERS = 2 * 8 * 32
"""Numbers in two routers of the tiny model."""


@pytest.fixture
def build(tiny_olmoe: Path) -> Build:
    return Build(ALONE, model_config(tiny_olmoe), 4, None, ROUTERS, 0, (2, 3))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    return encode(letter_samples(24), tokenizer, 500)


def base_output(folder: Path, prompts: list[Prompt]) -> RoutedOutput:
    network, layout = load_part(ALONE, model_config(folder), 4, None, None)
    routed = RoutedLM(network, layout, (2, 3)).attach()
    requests = requests_of(prompts)
    with torch.no_grad():
        batch = Feed(requests.sequences, "last3").batch(list(requests.targets))
        output: RoutedOutput = routed(**batch.inputs(CPU))
    return output


def numbers(rival: Rival) -> int:
    return sum(weight.numel() for weight in rival.trained)


@pytest.mark.parametrize("name", sorted(set(RIVALS) - {"prompt_tuning", "prefix_tuning"}))
def test_a_rival_starts_as_the_base_model_and_learns(
    name: str, build: Build, tiny_olmoe: Path, tmp_path: Path, prompts: list[Prompt]
) -> None:
    rival = RIVALS[name].build(build)
    requests = requests_of(prompts)
    feed = Feed(requests.sequences, "last3")
    with torch.no_grad():
        logits, routing = rival.read(feed.batch(list(requests.targets)))
    base = base_output(tiny_olmoe, prompts)
    assert torch.allclose(logits, base.logits, atol=1e-4)
    assert torch.allclose(routing, base.routing, atol=1e-5) and routing.shape == (24, 2, 8)
    run = tiny_run(tiny_olmoe, tmp_path, "train.epochs=6", "train.lr=0.02")
    result = train_rival(rival, run.train, requests, feed, range(24), lambda text: None)
    assert result.steps == 18
    assert result.last_loss < result.first_loss


def test_adapters_need_no_embedding_where_the_head_is_tied(tmp_path: Path) -> None:
    from roma_ds.testing.tiny_models import save_tiny

    model = model_config(save_tiny(tmp_path, "ernie4_5_moe"))
    for name in ("lora", "dora_r8"):
        rival = RIVALS[name].build(Build(ALONE, model, 4, 2, ROUTERS, 0, (2, 3)))
        assert rival.first == 2 and numbers(rival) > 0


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_learn(
    name: str, build: Build, tiny_olmoe: Path, tmp_path: Path, prompts: list[Prompt]
) -> None:
    rival = RIVALS[name].build(build)
    count = rival.facts["virtual_tokens"]
    per_token = 32 if name == "prompt_tuning" else 4 * 2 * 32
    assert numbers(rival) == count * per_token
    requests = requests_of(prompts)
    feed = Feed(requests.sequences, "last1")
    run = tiny_run(tiny_olmoe, tmp_path, "train.epochs=6", "train.lr=0.1")
    result = train_rival(rival, run.train, requests, feed, range(24), lambda text: None)
    assert result.last_loss < result.first_loss


def test_padding_changes_nothing_under_virtual_tokens(build: Build, prompts: list[Prompt]) -> None:
    for name in ("prompt_tuning", "prefix_tuning"):
        rival = RIVALS[name].build(build)
        requests = requests_of(prompts)
        feed = Feed(requests.sequences, "last1")
        with torch.no_grad():
            together = rival.read(feed.batch(list(requests.targets)))
            alone = [rival.read(feed.batch([number])) for number in requests.targets]
        for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.allclose(whole, torch.cat(parts), atol=1e-4), name


def test_a_padded_network_reads_the_routing_of_the_packed_one(
    tiny_olmoe: Path, prompts: list[Prompt]
) -> None:
    network = stock_network(model_config(tiny_olmoe))
    requests = requests_of(prompts)
    batch = Feed(requests.sequences, "last3").batch(list(requests.targets))
    base = base_output(tiny_olmoe, prompts)
    with torch.no_grad():
        logits, routing = PaddedNetwork(network, network, (2, 3), 0, CPU).read(batch)
    assert torch.allclose(logits, base.logits, atol=1e-4)
    assert torch.allclose(routing, base.routing, atol=1e-5)


class Preceded(nn.Module):
    """A causal LM that reads some tokens before every sequence."""

    def __init__(self, network: Any, before: list[int]) -> None:
        super().__init__()
        self.network, self.before = network, torch.tensor(before)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        first = self.before.expand(len(input_ids), -1)
        ids, mask = torch.cat([first, input_ids], 1), torch.cat([torch.ones_like(first), attention_mask], 1)
        return self.network(input_ids=ids, attention_mask=mask, **options)


def test_routing_is_read_behind_added_positions(tiny_olmoe: Path, prompts: list[Prompt]) -> None:
    """Tokens put before a sequence by the network give what they give as the beginning of the prompts."""
    before = [5, 9, 7]
    network = stock_network(model_config(tiny_olmoe))
    requests = requests_of(prompts)
    batch = Feed(requests.sequences, "last3").batch(list(requests.targets))
    base = base_output(tiny_olmoe, [replace(one, prompt=(*before, *one.prompt)) for one in prompts])
    with torch.no_grad():
        padded = PaddedNetwork(Preceded(network, before), network, (2, 3), len(before), CPU)
        logits, routing = padded.read(batch)
    assert torch.allclose(logits, base.logits, atol=1e-4)
    assert torch.allclose(routing, base.routing, atol=1e-5)


class Attention(nn.Module):
    def __init__(self, hidden: int, narrow: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, narrow, bias=False)
        self.v_proj = nn.Linear(hidden, narrow, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)


def network_of(layers: int, hidden: int, narrow: int) -> nn.Module:
    return nn.ModuleList(Attention(hidden, narrow) for _ in range(layers)).requires_grad_(False)


@pytest.mark.parametrize("kind", ["lora", "dora", "mixture"])
@pytest.mark.parametrize(
    ("layers", "hidden", "narrow", "routers"), [(5, 128, 128, 5 * 32 * 128), (5, 2048, 512, 5 * 64 * 2048)]
)
def test_matched_adapters_have_the_routers_number_of_parameters_within_5_percent(
    kind: str, layers: int, hidden: int, narrow: int, routers: int
) -> None:
    """The demo model, and OLMoE's width with grouped keys; the count is checked on real adapters."""
    with torch.device("meta"):
        network = network_of(layers, hidden, narrow)
    plan = matched_plan(network, kind, routers)
    assert plan.parameters == pytest.approx(routers, rel=0.05)
    if hidden == 128:
        real = network_of(layers, hidden, narrow)
        assert sum(weight.numel() for weight in add_adapters(real, plan, 0)) == plan.parameters


def test_rank_8_is_rank_8_everywhere() -> None:
    network = network_of(3, 64, 32)
    for kind in ("lora", "dora"):
        plan = rank_plan(network, kind, 8)
        assert (plan.rank, plan.products) == (8, ("q_proj", "k_proj", "v_proj", "o_proj"))
        extra = 3 * (64 + 32 + 32 + 64) if kind == "dora" else 0
        assert plan.parameters == 3 * 8 * (128 + 96 + 96 + 128) + extra


def test_a_mixture_weighs_its_adapters_by_the_input() -> None:
    torch.manual_seed(0)
    product = nn.Linear(6, 5, bias=False)
    mixture = LoraMixture(product, 2)
    hidden = torch.randn(7, 6)
    assert torch.equal(mixture(hidden), product(hidden)), "the same function before training"
    mixture.up.data.normal_()
    mixture.gate.data.normal_()
    shares = torch.softmax(hidden @ mixture.gate.T, dim=-1)
    expected = product(hidden) + 2 * sum(
        shares[:, place, None] * (hidden @ mixture.down[place].T @ mixture.up[place].T)
        for place in range(MIXED)
    )
    assert torch.allclose(mixture(hidden), expected, atol=1e-5)
    trained = sum(weight.numel() for weight in (mixture.up, mixture.down, mixture.gate))
    assert trained == numbers_of("mixture", [product], 2)


def test_dense_bp_trains_all_routers_and_the_norms_of_attention(build: Build) -> None:
    rival = RIVALS["dense_bp"].build(build)
    # 4 layers: router 8 x 32, norms before attention, of queries and of keys, 32 each.
    assert numbers(rival) == 4 * (8 * 32 + 3 * 32)


def test_examples_come_before_the_question_the_nearest_last() -> None:
    import numpy as np

    reference, asked = letter_samples(5, seed=1), letter_samples(2, seed=2)
    found = with_examples(asked, reference, np.array([[3, 1], [0, -1]]))
    assert found[0].prompt == "\n\n".join(
        [
            reference[1].prompt + reference[1].target,
            reference[3].prompt + reference[3].target,
            asked[0].prompt,
        ]
    )
    assert found[1].prompt.endswith(asked[1].prompt) and found[1].prompt.startswith(reference[0].prompt)
    assert (found[0].options, found[0].answer) == (asked[0].options, asked[0].answer)


def test_examples_come_before_every_context_of_a_filled_gap(tokenizer: Any) -> None:
    import numpy as np

    reference, plain = letter_samples(2, seed=1), letter_samples(1, seed=2)[0]
    gap = replace(
        plain, contexts=("w1 w2", "w1 w3"), options=(" w4 .", " w4 ."), choices=("w2", "w3"), answer=1
    )
    [found] = with_examples([gap], [reference[0], gap], np.array([[0, 1]]))
    before = f"w1 w3{gap.target}\n\n{reference[0].prompt}{reference[0].target}\n\n"
    assert found.contexts == (before + "w1 w2", before + "w1 w3")
    [one], [bare] = encode([found], tokenizer, 500), encode([gap], tokenizer, 500)
    assert all(len(one.before(option)) > len(bare.before(option)) + 10 for option in (0, 1))


def test_examples_of_a_chat_are_turns_behind_the_system_turn() -> None:
    import numpy as np

    tokenizer = chat_tokenizer(OLMOE)
    chat = ChatTemplate(tokenizer, ChatConfig(system="Be brief."), date.today())
    rows = [
        {"id": str(place), "question": f"Which is {word}?", "choices": ["sky", "blood"], "answer": 1}
        for place, word in enumerate(("red", "blue", "wet"))
    ]
    red, blue, wet = (templated(render(row, "letter", "t", "s", directly=True), chat) for row in rows)
    gap = {"id": "9", "question": "The _ is red.", "choices": ["sky", "blood"], "answer": 1}
    filled = templated(render(gap, "text", "t", "s", layout="gap", directly=True), chat)
    [found, other] = with_examples([wet, filled], [red, filled, blue], np.array([[2, 0], [1, -1]]), chat)
    assert found.messages is not None
    roles = [one.role for one in found.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [one.content[:12] for one in found.messages[1::2]] == [
        "Which is red",
        "Which is blu",
        "Which is wet",
    ]
    assert [one.content for one in found.messages[2::2]] == ["B", "B"]
    turns = [{"role": one.role, "content": one.content} for one in found.messages]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]
    (prompt,) = encode([found], tokenizer, 4000)
    assert list(prompt.prompt) == ids
    shown = "<|user|>\nThe blood\n<|assistant|>\nis red.<eos>\n"
    assert [context.count(shown) for context in other.contexts] == [1, 1]
    assert [context.rpartition("<|user|>\n")[2][:8] for context in other.contexts] == [
        "The sky\n",
        "The bloo",
    ]


def test_every_variant_is_a_method_and_the_oracle_says_what_it_sees() -> None:
    assert {"base", "oracle", "in_context", "c3po_regression", "c3po_descent", *TRAINED, *RIVALS} == set(
        METHODS
    )
    assert [method.name for method in METHODS.values() if method.uses_test_labels] == ["oracle"]
