"""Rivals and steered networks write what a plain loop over their own forward pass gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import letter_samples, model_config

from roma_ds.backbone.batches import Batch
from roma_ds.backbone.decoding import Decoder
from roma_ds.backbone.encoding import Encoded, Prompt, encode
from roma_ds.backbone.feed import Feed
from roma_ds.backbone.frozen import load_part
from roma_ds.backbone.generation import Asked, Writer
from roma_ds.backbone.plain import PlainModel
from roma_ds.backbone.routed import RoutedLM
from roma_ds.backbone.steered import Steering
from roma_ds.baselines.decoders import SteeredDecoder
from roma_ds.baselines.networks import Build
from roma_ds.baselines.rivals import RIVALS
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks

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
def loop(logits: Callable[[Batch], torch.Tensor], tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """One prompt at a time, the whole sequence anew for every token."""
    found = []
    for prompt in prompts:
        new: list[int] = []
        while len(new) < NEW and tokenizer.eos_token_id not in new:
            batch = Feed([Encoded(0, prompt.prompt, (*new, 0))], "last1").batch([0])
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
            batch = replace(batch, hidden_states=base(**batch.inputs(CPU)).entering)
        return rival.forward(batch)

    said = texts(rival.decoder(), tokenizer, prompts)
    assert said == loop(logits, tokenizer, prompts)
    plain = texts(PlainModel(ALONE, model, {}), tokenizer, prompts)
    assert said != plain, "what was trained must show in what is written"


def test_a_steered_network_writes_what_its_forward_pass_says(
    tiny_model: Path, tokenizer: Any, prompts: list[Prompt]
) -> None:
    model = model_config(tiny_model)
    network, layout = load_part(ALONE, model, 4, None, None)
    steering = Steering(RoutedLM(network, layout, layout.layers).attach(), (2, 3))
    plain = texts(PlainModel(ALONE, model, {}), tokenizer, prompts)
    feed = Feed([Encoded(row, one.prompt, (0,)) for row, one in enumerate(prompts)], "last1")
    with torch.no_grad():
        own = steering.routed(**feed.batch(range(len(prompts))).inputs(CPU)).routing[:, 2:].numpy()
    assert texts(SteeredDecoder(ALONE, steering, own, "last1"), tokenizer, prompts) == plain
    other = np.random.default_rng(0).dirichlet([0.05] * own.shape[2], own.shape[:2]).astype(np.float32)
    steered = SteeredDecoder(ALONE, steering, other, "last1")
    first = [one.decoding([0], [prompts[0].prompt])(None) for one in (steered, PlainModel(ALONE, model, {}))]
    assert (first[0] - first[1]).abs().max() > 1e-2, "the given routing reaches what is written"
    said = texts(steered, tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        given = torch.from_numpy(other[row : row + 1])

        def logits(batch: Batch, given: torch.Tensor = given) -> torch.Tensor:
            return steering.forward(batch, given, CPU).logits

        assert loop(logits, tokenizer, [prompt]) == [said[row]]
