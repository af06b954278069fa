"""Drawn tokens: from the right distribution, the same in any batch, and after an interruption."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import model_config, words

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.errors import Interrupted
from roma_ds.testing.tiny_models import save_tiny
from roma_ds.writing.generation import Asked, Writer, Written
from roma_ds.writing.kept import KeptAnswers
from roma_ds.writing.plain import PlainModel
from roma_ds.writing.sampling import Choice, draw_of

ALONE = World(Ranks(), torch.device("cpu"))
ZERO0 = {"zero_optimization": {"stage": 0}}
NEW = 10


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Choice(0.0, [""] * 5)(logits), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_tokens_come_as_often_as_they_are_likely(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, float("-inf"), 1.0, -3.0, float("-inf")])
    count = 20_000
    choose = Choice(temperature, [draw_of(0, "t/train/1", number) for number in range(count)])
    found = Counter(choose(logits.repeat(count, 1)).tolist())
    likely = torch.softmax(logits / temperature, dim=-1)
    for token, share in enumerate(likely.tolist()):
        # Six standard errors.
        assert abs(found[token] / count - share) <= 6 * (share * (1 - share) / count) ** 0.5
    assert not found[2] and not found[5]


def test_a_token_depends_on_its_own_answer_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(8, 50, generator=generator) for _ in range(4)]
    draws = [draw_of(3, f"t/train/{row}", 0) for row in range(8)]
    together = Choice(1.0, draws)
    found = torch.stack([together(logits) for logits in steps])
    for row in range(8):
        alone = Choice(1.0, draws[row : row + 1])
        assert [int(alone(logits[row : row + 1])) for logits in steps] == found[:, row].tolist()


def test_draws_differ_by_seed_sample_and_number() -> None:
    draws = {
        draw_of(seed, sample, number)
        for seed in (0, 1)
        for sample in ("a/b/1", "a/b/11", "1/a/b/1")
        for number in (0, 1, 11)
    }
    assert len(draws) == 18
    assert len({random.Random(draw).random() for draw in draws}) == 18


def asked_of(tokenizer: Any, copies: int = 3) -> list[Asked]:
    """Prompts of several lengths, each several times."""
    source = random.Random(5)
    prompts = [tuple(tokenizer(words(source, 2 + 3 * n % 10))["input_ids"]) for n in range(7)]
    return [
        Asked(prompt, (" w7",), draw=draw_of(0, f"t/train/{place}", number))
        for place, prompt in enumerate(prompts)
        for number in range(copies)
    ]


def written(model: PlainModel, tokenizer: Any, batch: int, temperature: float, **more: Any) -> list[Written]:
    writer = Writer(model, tokenizer, NEW, temperature=temperature)
    found = writer.write(asked_of(tokenizer), batch, "write", **more)
    assert found is not None
    return found


# Packed by us, padded rows, and recurrences that no padding may enter.
@pytest.mark.parametrize("model_type", ["olmoe", "llama4_text", "granitemoehybrid", "deepseek_v32"])
def test_batches_of_any_size_write_the_same(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path / "model", model_type)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PlainModel(ALONE, model_config(folder), ZERO0)
    drawn = written(model, tokenizer, 8, 0.9)
    assert drawn == written(model, tokenizer, 1, 0.9) == written(model, tokenizer, 5, 0.9)
    texts = [one.text for one in drawn]
    assert all(len(set(texts[start : start + 3])) == 3 for start in range(0, 21, 3)), "drawn alike"
    greedy = [one.text for one in written(model, tokenizer, 8, 0.0)]
    assert all(len(set(greedy[start : start + 3])) == 1 for start in range(0, 21, 3))
    assert texts != greedy
    assert [one.text for one in written(model, tokenizer, 8, 1e-4)] == greedy


class Stopping(PlainModel):
    """Ends by a signal after some batches."""

    left = 10_000

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Interrupted(15)
        return super().decoding(numbers, prompts)


def test_a_killed_writing_goes_on(tiny_olmoe: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = Stopping(ALONE, model_config(tiny_olmoe), ZERO0)
    kept = KeptAnswers(tmp_path / "kept", "one", save_every=3600)
    whole = written(model, tokenizer, 4, 0.9)
    batches = 10_000 - model.left
    model.left = 2
    with pytest.raises(Interrupted):
        written(model, tokenizer, 4, 0.9, kept=kept)
    (file,) = (tmp_path / "kept").glob("answers-*.json")
    assert 0 < len(json.loads(file.read_text())["answers"]) < 21
    model.left = 10_000
    assert written(model, tokenizer, 4, 0.9, kept=kept) == whole
    assert 10_000 - model.left == batches - 2, "what was kept is not written again"
    model.left = 0
    assert written(model, tokenizer, 4, 0.9, kept=kept) == whole, "all of it is kept"


def test_damaged_files_and_those_of_another_writing_count_as_absent(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept", "one", save_every=0)
    assert kept.read() == {}
    one, two = Written("a ü", 2, True), Written("", 0, False)
    kept.add({3: one}, 0)
    kept.add({1: two}, 0)
    kept.add({2: two}, 1)
    assert kept.read() == {3: one, 1: two, 2: two}
    (tmp_path / "kept" / "answers-000000-1.json").write_text('{"answers": [[2, "x"')
    assert kept.read() == {3: one, 1: two}
    assert KeptAnswers(tmp_path / "kept", "other", save_every=0).read() == {}
    assert not list((tmp_path / "kept").glob("answers-*"))
