"""A network gives the same whether sequences share what they begin with or are run one after the other."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import roma_ds.sequences.shared_attention as shared_attention
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.config import ModelConfig
from roma_ds.families import detect, family_of
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import Batch, collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.testing.tiny_models import save_tiny

CPU = torch.device("cpu")
TYPES = ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4_text", "granitemoe", "longcat_flash"]
"""Plain, normed, sinks and windows, latent attention, two kinds of heads, multipliers, two attentions."""


def whole(folder: Path, model_type: str, dtype: torch.dtype = torch.float32) -> RoutedLM:
    save_tiny(folder, model_type, layers=6)
    model = ModelConfig(path=str(folder), dtype="float32")
    config = load_config(model)
    depth = family_of(config).depth(config)
    network = load_span(model, Span.suffix(0, depth), None, CPU).to(dtype)
    layout = detect(network, range(depth))
    routed = RoutedLM(network, layout, layout.layers).attach()
    routed.capture(3)
    return routed


def related(seed: int, count: int = 14) -> list[Encoded]:
    """Sequences that begin as others do; equal ones and beginnings of others among them, and strangers."""
    draw = random.Random(seed)
    found: list[Encoded] = []
    for row in range(count):
        base: tuple[int, ...] = ()
        if found and draw.random() < 0.8:
            other = draw.choice(found)
            base = (*other.prompt, *other.continuation)
            base = base[: draw.randint(0, len(base))]
        own = tuple(draw.randint(3, 140) for _ in range(draw.choice((0, 1, 3, 9, 30))))
        ids = (*base, *own) if len(base) + len(own) > 1 else (*base, *own, 5, 6)
        cut = draw.randint(1, min(4, len(ids) - 1))
        found.append(Encoded(row, ids[:-cut], ids[-cut:]))
    return found


def both(seed: int, tokens: str = "last1") -> tuple[Batch, Batch, list[int]]:
    sequences = related(seed)
    plain, shared = collate(sequences, tokens), collate(sequences, tokens, shared=True)
    assert shared.tokens < plain.tokens
    return plain, shared, [sequence.length for sequence in sequences]


@pytest.mark.parametrize("whole_chunks", [True, False])
@pytest.mark.parametrize("model_type", TYPES)
def test_logits_routing_and_hidden_states(
    model_type: str, whole_chunks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole_chunks:
        monkeypatch.setattr(shared_attention, "WHOLE", 8)
        monkeypatch.setattr(shared_attention, "BESIDE", 4)
    routed = whole(tmp_path, model_type)
    for seed in range(3):
        plain, shared, lengths = both(seed, "last3")
        with torch.no_grad():
            one, other = (routed(**batch.inputs(CPU)) for batch in (plain, shared))
        assert one.entering is not None and other.entering is not None
        entering = torch.cat(shared.apart(other.entering, lengths))
        pairs = ((one.logits, other.logits), (one.routing, other.routing), (one.entering, entering))
        for wanted, found in pairs:
            # Half of this is what packing does to Gemma's last digits, against each sequence alone.
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_in_float64_to_the_tenth_digit(model_type: str, tmp_path: Path) -> None:
    routed = whole(tmp_path, model_type, torch.float64)
    # The library's grouped product knows no float64.
    routed.network.set_experts_implementation("eager")
    plain, shared, lengths = both(1)
    with torch.no_grad():
        one, other = (routed(**batch.inputs(CPU)).entering for batch in (plain, shared))
    assert one is not None and other is not None and one.dtype == torch.float64
    torch.testing.assert_close(torch.cat(shared.apart(other, lengths)), one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_gradients_are_summed_through_what_is_shared(model_type: str, tmp_path: Path) -> None:
    routed = whole(tmp_path, model_type)
    weights = list(routed.routers().values())
    for weight in weights:
        weight.requires_grad_(True)
    found: list[list[Any]] = []
    for batch in both(2)[:2]:
        output = routed(**batch.inputs(CPU))
        loss = (
            torch.nn.functional.cross_entropy(output.logits, batch.answer_ids) + output.routing.pow(2).sum()
        )
        found.append(list(torch.autograd.grad(loss, weights)))
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_a_suffix_goes_on_from_what_was_kept_of_each_sequence(tmp_path: Path) -> None:
    routed = whole(tmp_path, "olmoe")
    plain, shared, lengths = both(3)
    with torch.no_grad():
        before = routed(**shared.inputs(CPU))
    pieces = torch.cat(shared.apart(before.entering, lengths))
    model = ModelConfig(path=str(tmp_path), dtype="float32")
    part = load_span(model, Span(3, 6, embedding=False, head=True), None, CPU)
    layout = detect(part, range(3, 6))
    suffix = RoutedLM(part, layout, layout.layers, 3).attach()
    with torch.no_grad():
        for batch in (plain, shared):
            found = suffix(**replace(batch, entering=batch.joined(pieces)).inputs(CPU))
            torch.testing.assert_close(found.logits, before.logits, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.routing, before.routing[:, 3:], rtol=1e-5, atol=1e-6)
