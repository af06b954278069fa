"""Rivals and steered networks write what a plain loop over their own forward pass gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import letter_samples, model_config
from transformers import PreTrainedTokenizerFast

from roma_ds.baselines.decoders import SteeredDecoder
from roma_ds.baselines.networks import Build
from roma_ds.baselines.rivals import RIVALS
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.errors import UserError
from roma_ds.frozen_pass.frozen_model import load_part
from roma_ds.network.routed import RoutedLM
from roma_ds.network.steered import Steering
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.encoding import Encoded, Prompt, encode
from roma_ds.testing.tiny_composites import save_composite
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.writing.decoding import Decoder
from roma_ds.writing.generation import Asked, Writer
from roma_ds.writing.plain import PlainModel

CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)
NEW = 6
WHOLE = ("dense_bp", "prompt_tuning", "prefix_tuning")
"""Rivals that take token ids whatever the cache."""
KINDS = [
    (name, first) for name in sorted(RIVALS) for first in (None, 2) if first is None or name not in WHOLE
]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    return encode(letter_samples(7), tokenizer, 500)


def texts(decoder: Decoder, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    written = Writer(decoder, tokenizer, NEW).write([Asked(one.prompt, ()) for one in prompts], 3, "write")
    assert written is not None and all(one.tokens == NEW or one.ended for one in written)
    return [one.text for one in written]


@torch.no_grad()
def loop(
    logits: Callable[[Batch], torch.Tensor], tokenizer: Any, prompts: Sequence[Prompt], tokens: str = "last1"
) -> list[str]:
    """One prompt at a time, the whole sequence anew for every token."""
    found = []
    for prompt in prompts:
        new: list[int] = []
        while len(new) < NEW and tokenizer.eos_token_id not in new:
            batch = Feed([Encoded(0, prompt.prompt, (*new, 0), prompt.users[0])], tokens).batch([0])
            new.append(int(logits(batch)[-1].argmax()))
        found.append(tokenizer.decode(new, skip_special_tokens=True))
    return found


@pytest.mark.parametrize(("name", "first"), KINDS)
def test_a_rival_writes_what_its_forward_pass_says(
    name: str, first: int | None, tiny_olmoe: Path, tokenizer: Any, prompts: list[Prompt]
) -> None:
    model = model_config(tiny_olmoe)
    rival = RIVALS[name].build(Build(ALONE, model, 4, first, 2 * 8 * 32, 0, (2, 3)))
    assert rival.first == first
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in rival.trained:
            weight.add_(0.4 * torch.randn_like(weight))
    network, layout = load_part(ALONE, model, 4, None, None)
    base = RoutedLM(network, layout, layout.layers).attach()
    base.capture(2)

    def logits(batch: Batch) -> torch.Tensor:
        if first is not None:
            batch = replace(batch, entering=base(**batch.inputs(CPU)).entering)
        return rival.forward(batch)

    expected = loop(logits, tokenizer, prompts)
    said = texts(rival.decoder(), tokenizer, prompts)
    assert said == expected
    plain = texts(PlainModel(ALONE, model, {}), tokenizer, prompts)
    assert said != plain, "what was trained must show in what is written"


@pytest.mark.parametrize("model_type", ["gemma4", "mistral4"])
def test_virtual_tokens_of_a_model_by_its_class_and_of_a_text_part(model_type: str, tmp_path: Path) -> None:
    """Of one there is no entry in the library's table, of the other no checkpoint of its own."""
    save = save_composite if model_type == "gemma4" else save_tiny
    model = model_config(save(tmp_path / "model", model_type))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model.path)
    prompts = encode(letter_samples(3), tokenizer, 500)
    build = Build(ALONE, model, 4, None, 2 * 8 * 32, 0, (2, 3))
    rival = RIVALS["prompt_tuning"].build(build)
    with torch.no_grad():
        wanted = loop(rival.forward, tokenizer, prompts)
    assert texts(rival.decoder(), tokenizer, prompts) == wanted
    reason = "heads differ from layer to layer" if model_type == "gemma4" else "attention has latent ones"
    with pytest.raises(UserError, match=reason):
        RIVALS["prefix_tuning"].build(build)


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_window_does_not_hide_virtual_tokens_behind_padding(
    name: str, family: str, tmp_path: Path, tokenizer: Any
) -> None:
    """Logits, since one token in a window moves them little; prompts of unequal lengths in one batch."""
    save_tiny(tmp_path, family, sliding_window=30)
    build = Build(ALONE, model_config(tmp_path), 4, None, 2 * 8 * 32, 0, (2, 3))
    rival = RIVALS[name].build(build)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in rival.trained:
            weight.add_(torch.randn_like(weight))
    prompts = [tuple(4 + (7 * place + turn) % 150 for place in range(turn)) for turn in (45, 12, 33, 12)]
    sequences = [Encoded(row, prompt, (9, 0)) for row, prompt in enumerate(prompts)]
    with torch.no_grad():
        expected = rival.forward(Feed(sequences, "last1").batch(range(4))).reshape(4, 2, -1)
    step = rival.decoder().decoding(range(4), prompts)
    assert torch.allclose(step(None), expected[:, 0], atol=1e-4)
    assert torch.allclose(step(torch.tensor([9] * 4)), expected[:, 1], atol=1e-4)


def test_prefix_tuning_of_latent_attention_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "deepseek_v2")
    build = Build(ALONE, model_config(tmp_path), 4, None, 2 * 8 * 32, 0, (2, 3))
    with pytest.raises(UserError, match="leave prefix_tuning out"):
        RIVALS["prefix_tuning"].build(build)


def test_more_end_tokens_of_the_generation_config_count(tiny_olmoe: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_olmoe, tmp_path / "model")
    model = model_config(tmp_path / "model")
    own = PlainModel(ALONE, model, {}).generation_config.eos_token_id
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [own, 11]}))
    whole = PlainModel(ALONE, model, {}).generation_config
    virtual = RIVALS["prompt_tuning"].build(Build(ALONE, model, 4, None, 1, 0, (3,))).decoder()
    assert whole.eos_token_id == virtual.generation_config.eos_token_id == [own, 11]


@pytest.mark.parametrize("tokens", ["last1", "last3", "user1"])
def test_a_steered_network_writes_what_its_forward_pass_says(
    tokens: str, tiny_model: Path, tokenizer: Any, prompts: list[Prompt]
) -> None:
    model = model_config(tiny_model)
    network, layout = load_part(ALONE, model, 4, None, None)
    steering = Steering(RoutedLM(network, layout, layout.layers).attach(), (2, 3))
    plain = texts(PlainModel(ALONE, model, {}), tokenizer, prompts)
    prompts = [replace(one, users=(len(one.prompt) - 3,)) for one in prompts]
    users = [one.users[0] for one in prompts]
    feed = Feed([Encoded(row, one.prompt, (0,), users[row]) for row, one in enumerate(prompts)], tokens)
    with torch.no_grad():
        own = steering.routed(**feed.batch(range(len(prompts))).inputs(CPU)).routing[:, 2:].numpy()
    ends = network.generation_config
    if tokens != "last3":
        unchanged = SteeredDecoder(ALONE, steering, own, tokens, NEW, ends, users)
        assert texts(unchanged, tokenizer, prompts) == plain
    other = np.random.default_rng(0).dirichlet([0.05] * own.shape[2], own.shape[:2]).astype(np.float32)
    steered = SteeredDecoder(ALONE, steering, other, tokens, NEW, ends, users)
    first = [one.decoding([0], [prompts[0].prompt])(None) for one in (steered, PlainModel(ALONE, model, {}))]
    # The user's token is seen by the last layer's attention alone.
    least = 1e-5 if tokens == "user1" else 1e-2
    assert (first[0] - first[1]).abs().max() > least, "the given routing reaches what is written"
    said = texts(steered, tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        given = torch.from_numpy(other[row : row + 1])

        def logits(batch: Batch, given: torch.Tensor = given) -> torch.Tensor:
            return steering.forward(batch, given, CPU).logits

        assert loop(logits, tokenizer, [prompt], tokens) == [said[row]]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_steps_of_a_steered_network_are_those_of_whole_passes(family: str, tmp_path: Path) -> None:
    """With a window; logits to rounding, of unequal prompts, over several steps."""
    save_tiny(tmp_path, family, sliding_window=30)
    network, layout = load_part(ALONE, model_config(tmp_path), 4, None, None)
    steering = Steering(RoutedLM(network, layout, layout.layers).attach(), (2, 3))
    prompts = [tuple(4 + (7 * place + turn) % 150 for place in range(turn)) for turn in (45, 12, 28)]
    routing = np.random.default_rng(0).dirichlet([0.3] * 8, (3, 2)).astype(np.float32)
    step = SteeredDecoder(ALONE, steering, routing[::-1].copy(), "last1", 9, None).decoding(
        [2, 1, 0], prompts
    )
    new = [5, 17, 31, 8, 90]
    sequences = [Encoded(row, prompt, (*new, 0)) for row, prompt in enumerate(prompts)]
    with torch.no_grad():
        batch = Feed(sequences, "last1").batch(range(3))
        whole = steering.forward(batch, torch.from_numpy(routing), CPU).logits.reshape(3, len(new) + 1, -1)
    found = [step(None), *(step(torch.tensor([token] * 3)) for token in new)]
    assert torch.allclose(torch.stack(found, dim=1), whole, atol=1e-4)
