"""The library's own forward pass, padded on the left: what it gives equals that without padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import free_sample, letter_sample, model_config, text_sample, words
from transformers import AutoModelForCausalLM

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.data.sample import Sample
from roma_ds.errors import UserError
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.sequences.encoding import encode
from roma_ds.testing.tiny_models import save_tiny, save_tokenizer
from roma_ds.writing.decoding import left_padded
from roma_ds.writing.generation import Asked, Writer
from roma_ds.writing.plain import PlainModel

ALONE = World(Ranks(), torch.device("cpu"))
ZERO0 = {"zero_optimization": {"stage": 0}}
DENSE = ("llama", "qwen3", "mistral", "gemma2")
NEW = 12


def save_dense(folder: Path, model_type: str) -> Path:
    """A small random model without routers; its attention sees few tokens where it has a window."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        model_type,
        vocab_size=save_tokenizer(folder),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=6 if model_type in ("mistral", "gemma2") else None,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return folder


def mixed_samples(count: int = 13) -> list[Sample]:
    """Letters, texts of several tokens, free texts, and gaps to fill; lengths differ."""
    source = random.Random(3)
    makers = (letter_sample, text_sample, free_sample)
    samples = [makers[place % 3](place, source) for place in range(count)]
    start, rest = words(source, 3), words(source, 2)
    contexts = (f"{start} w1", f"{start} w2 w3")
    gap = Sample(
        "g/test/1",
        "g",
        "test",
        start,
        start,
        ("w1", "w2 w3"),
        1,
        f" {rest}",
        (f" {rest}",) * 2,
        "",
        "",
        contexts,
    )
    return [*samples, gap]


def equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(one.option_loglikelihoods, other.option_loglikelihoods, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-5)
    np.testing.assert_allclose(one.target_loglikelihood, other.target_loglikelihood, atol=3e-5)
    np.testing.assert_array_equal(one.predicted, other.predicted)
    np.testing.assert_array_equal(one.correct, other.correct)


def test_padded_and_packed_scores_are_the_same(tiny_olmoe: Path, tokenizer: Any) -> None:
    prompts = encode(mixed_samples(), tokenizer, 500)
    plain = PlainModel(ALONE, model_config(tiny_olmoe), ZERO0)
    padded, single = (plain.score(prompts, size, "padded") for size in (5, 1))
    packed = FrozenModel(ALONE, model_config(tiny_olmoe), ZERO0).score(prompts, "last1", 4, "packed")
    equal(padded, packed)
    equal(padded, single)
    gap = prompts[-1]
    assert gap.contexts and gap.contexts[0] != gap.contexts[1] and gap.options[0] == gap.options[1]
    values = packed.option_loglikelihoods[-1] if packed is not None else []
    assert values[0] != values[1], "equal texts after different contexts are different answers"


@torch.no_grad()
def greedy(stock: Any, prompt: Sequence[int], ends: set[int]) -> list[int]:
    """Token by token, the whole sequence each time, nothing padded or cached."""
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(stock(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("model_type", ["olmoe", "qwen3_moe", "deepseek", "granitemoe", "gpt_oss", *DENSE])
def test_generated_texts_are_those_of_a_plain_loop(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = (save_dense if model_type in DENSE else save_tiny)(tmp_path / "model", model_type)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    source = random.Random(5)
    prompts = [tuple(tokenizer(words(source, 2 + 3 * n))["input_ids"]) for n in range(5)]
    model = PlainModel(ALONE, model_config(folder), ZERO0)
    written = Writer(model, tokenizer, NEW).write([Asked(prompt, ()) for prompt in prompts], 4, "write")
    assert written is not None
    for prompt, one in zip(prompts, written, strict=True):
        tokens = greedy(stock, prompt, {2})
        assert one.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert (one.tokens, one.ended) == (len(tokens), tokens[-1] == 2)


@pytest.mark.parametrize("model_type", DENSE)
def test_scores_of_models_without_routers_are_those_of_the_library(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_dense(tmp_path / "model", model_type)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = encode(mixed_samples(7), tokenizer, 200)
    scores = PlainModel(ALONE, model_config(folder), ZERO0).score(prompts, 3, "dense")
    assert scores is not None and scores.routing.shape == (len(prompts), 0, 0)
    for prompt, values in zip(prompts, scores.option_loglikelihoods, strict=True):
        for number, option in enumerate(prompt.options):
            tokens = torch.tensor([[*prompt.before(number), *option]])
            with torch.no_grad():
                logprobs = stock(input_ids=tokens).logits[0].log_softmax(dim=-1)
            places = range(tokens.shape[1] - len(option) - 1, tokens.shape[1] - 1)
            wanted = sum(float(logprobs[at, tokens[0, at + 1]]) for at in places)
            assert values[number] == pytest.approx(wanted, abs=5e-5)


def test_a_stop_sequence_ends_the_text_and_only_new_tokens_count(tiny_olmoe: Path, tokenizer: Any) -> None:
    model = PlainModel(ALONE, model_config(tiny_olmoe), ZERO0)
    writer = Writer(model, tokenizer, NEW)
    prompt = tuple(tokenizer("w1 w2 w3")["input_ids"])
    (free,) = writer.write([Asked(prompt, ())], 1, "free") or []
    said = free.text.split()
    assert len(said) == NEW and not free.text.startswith("w1 w2 w3") and not free.ended
    stop = next(word for word in said[2:] if said.index(word) >= 2)
    place = said.index(stop)
    (stopped,) = writer.write([Asked(prompt, (f" {stop}",))], 1, "stopped") or []
    assert stopped.text.split() == said[:place] and stopped.ended
    assert place < stopped.tokens <= NEW


def test_other_routers_change_what_is_written_and_go_again(tiny_olmoe: Path, tokenizer: Any) -> None:
    model = PlainModel(ALONE, model_config(tiny_olmoe), ZERO0)
    prompts = encode(mixed_samples(), tokenizer, 500)
    before = model.score(prompts, 4, "own")
    generator = torch.Generator().manual_seed(0)
    weights = {layer: torch.randn(8, 32, generator=generator) for layer in (2, 3)}
    model.use_routers(weights)
    tuned = model.score(prompts, 4, "tuned")
    frozen = FrozenModel(ALONE, model_config(tiny_olmoe), ZERO0)
    frozen.use_routers(weights)
    equal(tuned, frozen.score(prompts, "last1", 4, "frozen"))
    assert before is not None and tuned is not None
    assert not np.allclose(before.target_loglikelihood, tuned.target_loglikelihood, atol=1e-3)
    model.use_routers({})
    equal(before, model.score(prompts, 4, "own again"))


def test_routers_for_a_model_without_any_are_refused(tmp_path: Path) -> None:
    model = PlainModel(ALONE, model_config(save_dense(tmp_path / "model", "llama")), ZERO0)
    model.use_routers({})
    with pytest.raises(UserError, match="this model has no routers"):
        model.use_routers({0: torch.zeros(8, 32)})


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_dense(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight among them"
    ):
        PlainModel(ALONE, model_config(folder), ZERO0)


def test_padding_stands_on_the_left() -> None:
    ids, mask = left_padded([(5, 6, 7), (8,)])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
