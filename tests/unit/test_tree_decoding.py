"""Packed trees write what the library writes, token by token, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from related_prompts import Ids, related
from tiny_runs import model_config, words

import roma_ds.sequences.tree_cache as tree_cache
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.families import detect, family_of
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.testing.tiny_sizes import MOE_TYPES
from roma_ds.writing.generation import Asked, Writer, Written, new_tokens
from roma_ds.writing.plain import PlainModel
from roma_ds.writing.sampling import draw_of
from roma_ds.writing.tree_decoding import TreeDecoder, TreeSteps

CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)
NEW = 12
TYPES = [
    *("olmoe", "qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3", "gemma4_text", "granitemoe"),
    *("longcat_flash", "mistral4", "cohere2_moe"),
]
"""Plain, normed, sinks and windows, a window alone, latent attention, two kinds of heads, multipliers, two
attentions a layer, and others."""
BY_ROWS = {
    *("axk2", "bailing_hybrid", "dbrx", "deepseek_v32", "deepseek_v4", "doge", "dots3_note_text"),
    *("glm_moe_dsa", "granitemoehybrid", "hy_v4", "inkling2_text", "inkling_text", "jamba", "jetmoe"),
    *("kimi_linear", "lfm2_moe", "llama4_text", "minimax", "minimax_m3_vl_text", "nemotron_h"),
    *("qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "zaya"),
}
"""Types whose layers mix tokens otherwise than by attention, and doge, which is refused."""
WINDOW = {"gpt_oss": {"sliding_window": 6}, "mixtral": {"sliding_window": 6}}


def routed_network(folder: Path, dtype: torch.dtype = torch.float32) -> RoutedLM:
    model = model_config(folder)
    config = load_config(model)
    depth = family_of(config).depth(config)
    network = load_span(model, Span.suffix(0, depth), None, CPU).to(dtype)
    if dtype == torch.float64:
        # The library's grouped product knows no float64.
        network.set_experts_implementation("eager")
    layout = detect(network, range(depth))
    routed = RoutedLM(network, layout, layout.layers).attach()
    if dtype == torch.float64:
        network.set_experts_implementation("eager")
    return routed


def likeliest(logits: torch.Tensor, answers: Sequence[int]) -> torch.Tensor:
    return logits.argmax(dim=-1)


def written_by(routed: RoutedLM, prompts: Sequence[Ids], ends: Sequence[int] = ()) -> list[list[int]]:
    def over(_: int, tokens: Sequence[int]) -> bool:
        return tokens[-1] in ends

    return new_tokens(TreeSteps(prompts, routed, CPU), len(prompts), NEW, likeliest, over)


@torch.no_grad()
def library_s(stock: Any, prompt: Ids, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
    """What the library takes behind the prompt and each of `tokens`, and how far behind that these are."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    logits = stock(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].double()
    behind = logits.max(dim=-1).values - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return logits.argmax(dim=-1).tolist(), behind.tolist()


@pytest.mark.parametrize("model_type", TYPES)
def test_every_token_is_the_one_that_the_library_takes(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, model_type, **WINDOW.get(model_type, {}))
    stock = causal_lm_class(type(load_config(model_config(folder)))).from_pretrained(folder).eval()
    routed = routed_network(folder)
    for seed in range(2):
        prompts = related(seed)
        for prompt, tokens in zip(prompts, written_by(routed, prompts), strict=True):
            assert len(tokens) == NEW
            taken, behind = library_s(stock, prompt, tokens)
            # Of two tokens that are as likely to rounding, either.
            assert all(
                one == other or gap < 1e-5 for one, other, gap in zip(taken, tokens, behind, strict=True)
            )


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in ("cohere2_moe", "mistral4")])
def test_in_float64_without_exception(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, model_type, **WINDOW.get(model_type, {}))
    network_class = causal_lm_class(type(load_config(model_config(folder))))
    stock = network_class.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()
    routed = routed_network(folder, torch.float64)
    prompts = related(5, 8)
    for prompt, tokens in zip(prompts, written_by(routed, prompts), strict=True):
        assert library_s(stock, prompt, tokens)[0] == tokens


@pytest.mark.parametrize("model_type", sorted(set(MOE_TYPES) - BY_ROWS))
def test_logits_of_steps_are_those_of_whole_passes(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of given tokens, with answers that leave on the way, of every family whose attention is packed."""
    folder = save_tiny(tmp_path, model_type)
    assert family_of(load_config(model_config(folder))).shares_tokens
    routed, draw = routed_network(folder), random.Random(1)
    for worth in (1, tree_cache.WORTH):
        monkeypatch.setattr(tree_cache, "WORTH", worth)
        prompts = related(3)
        new = [[draw.randint(3, 140) for _ in range(NEW)] for _ in prompts]
        sequences = [
            Encoded(row, prompt, (*own, 0))
            for row, (prompt, own) in enumerate(zip(prompts, new, strict=True))
        ]
        with torch.no_grad():
            whole = routed(**collate(sequences, "last1").inputs(CPU)).logits.unflatten(0, (-1, NEW + 1))
        steps, rows = TreeSteps(prompts, routed, CPU), list(range(len(prompts)))
        assert bool(steps.cache.runs) == (worth == 1)
        chosen = None
        for turn in range(NEW + 1):
            found = steps(chosen)
            torch.testing.assert_close(
                found, whole[rows, turn], rtol=1e-5, atol=2e-5 * float(whole.abs().max())
            )
            if turn in (2, 5):
                places = [place for place in range(len(rows)) if place % 3 != turn % 3]
                steps.stay(places)
                rows = [rows[place] for place in places]
            if turn < NEW:
                chosen = torch.tensor([new[row][turn] for row in rows])


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss"])
def test_an_answer_is_the_same_in_any_batch(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, model_type, **WINDOW.get(model_type, {}))
    routed, lengths = routed_network(folder, torch.float64), set()
    for seed in range(3):
        prompts, draw = related(seed), random.Random(seed)
        ends = [tokens[4] for tokens in written_by(routed, prompts)[:4]]
        together = written_by(routed, prompts, ends)
        lengths |= {len(tokens) for tokens in together}
        for prompt, tokens in zip(prompts, together, strict=True):
            assert written_by(routed, [prompt], ends) == [tokens]
        some = draw.sample(range(len(prompts)), 5)
        assert written_by(routed, [prompts[n] for n in some], ends) == [together[n] for n in some]
    assert len(lengths) > 1


class _Shrinking:
    """Steps that say how many answers they were run with."""

    def __init__(self, count: int) -> None:
        self.rows, self.run = list(range(count)), list[list[int]]()

    def __call__(self, chosen: torch.Tensor | None) -> torch.Tensor:
        self.run.append(list(self.rows))
        return torch.nn.functional.one_hot(torch.tensor(self.rows), 9).float()

    def stay(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


@pytest.mark.parametrize("count", [3, 0])
def test_answers_leave_when_they_end_and_passes_go_on_with_one(count: int) -> None:
    step, passes = _Shrinking(max(1, count)), iter(range(100))

    def over(row: int, tokens: Sequence[int]) -> bool:
        return len(tokens) > 2 * row

    new = new_tokens(step, count, 20, likeliest, over, lambda busy: next(passes) < 6)
    assert new == [[row] * (2 * row + 1) for row in range(count)]
    assert step.run == ([[0, 1, 2], *[[1, 2]] * 2, *[[2]] * 4] if count else [[0]] * 7)


def asked_of(tokenizer: Any, copies: int) -> list[Asked]:
    """Prompts behind one long beginning, each several times."""
    source = random.Random(5)
    start = words(source, 30)
    prompts = [tuple(tokenizer(f"{start} {words(source, 2 + 3 * n % 10)}")["input_ids"]) for n in range(6)]
    return [
        Asked(prompt, (" w7", " w50"), draw=draw_of(0, f"t/train/{place}", number))
        for place, prompt in enumerate(prompts)
        for number in range(copies)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_writer_writes_the_same_by_trees_and_by_the_library(
    temperature: float, tiny_model: Path, tokenizer: Any
) -> None:
    model, asked = model_config(tiny_model), asked_of(tokenizer, 3)
    frozen, plain = FrozenModel(ALONE, model, {}), PlainModel(ALONE, model, {})
    trees = TreeDecoder(frozen, model)
    assert trees.generation_config.eos_token_id == plain.generation_config.eos_token_id
    for weights in ({}, {3: torch.randn(8, 32, generator=torch.Generator().manual_seed(0))}):
        frozen.use_routers(weights)
        plain.use_routers(weights)
        found: list[list[Written] | None] = []
        for decoder, size in ((plain, 4), (trees, 1), (trees, 2), (trees, 50)):
            writer = Writer(decoder, tokenizer, NEW, temperature=temperature)
            found.append(writer.write(asked, size, "write"))
        assert found[0] is not None and len({one.tokens for one in found[0]}) > 1
        assert found.count(found[0]) == len(found)


def test_what_prompts_share_is_run_once(tiny_olmoe: Path, tokenizer: Any) -> None:
    model, asked = model_config(tiny_olmoe), asked_of(tokenizer, 4)
    frozen = FrozenModel(ALONE, model, {})
    seen: list[int] = []
    frozen.routed.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    writer = Writer(TreeDecoder(frozen, model), tokenizer, 3)
    assert writer.write(asked, 20, "write")
    own = {one.prompt for one in asked}
    assert seen[0] == 30 + sum(len(prompt) - 30 for prompt in own)
    assert seen[1:] == [len(asked)] * 2


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss"])
def test_in_bfloat16_as_near_as_whole_passes_are(model_type: str, tmp_path: Path) -> None:
    """Steps are no further from float32 than twice what a whole pass in bfloat16 is."""
    folder = save_tiny(tmp_path, model_type)
    exact, rounded = routed_network(folder), routed_network(folder, torch.bfloat16)
    prompts = related(2)
    new = [tuple(random.Random(row).choices(range(3, 140), k=NEW)) for row in range(len(prompts))]
    sequences = [
        Encoded(row, prompt, (*own, 0)) for row, (prompt, own) in enumerate(zip(prompts, new, strict=True))
    ]
    inputs = collate(sequences, "last1").inputs(CPU)
    steps = TreeSteps(prompts, rounded, CPU)
    chosen = [None, *(torch.tensor([own[turn] for own in new]) for turn in range(NEW))]
    with torch.no_grad():
        wanted, whole = (one(**inputs).logits.unflatten(0, (-1, NEW + 1)) for one in (exact, rounded))
    found = torch.stack([steps(one) for one in chosen], dim=1)
    apart = (found - wanted).pow(2).mean().sqrt()
    assert 0 < float(apart) < 2 * float((whole - wanted).pow(2).mean().sqrt())
