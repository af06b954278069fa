from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import free_sample, letter_sample, text_sample

from roma_ds.data.sample import Sample
from roma_ds.errors import UserError
from roma_ds.sequences.encoding import Encoded, cut_middle, encode


class Characters:
    """A tokenizer of characters, with special tokens around each text when asked for."""

    def __init__(self, first: int | None = None, last: int | None = None, merges: str = "") -> None:
        self.first, self.last, self.merges = first, last, merges

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        if self.merges and self.merges in text:
            place = text.index(self.merges)
            ids[place : place + len(self.merges)] = [9999]
        if add_special_tokens:
            ids = [*([self.first] if self.first else []), *ids, *([self.last] if self.last else [])]
        return {"input_ids": ids}


@given(st.lists(st.integers(0, 9999), max_size=80, unique=True), st.integers(1, 90))
def test_cutting_keeps_both_ends_and_the_limit(tokens: list[int], limit: int) -> None:
    kept, cut = cut_middle(tokens, limit)
    assert len(kept) == min(len(tokens), limit)
    assert cut == (len(tokens) > limit)
    if not cut:
        assert kept == tuple(tokens)
        return
    head = 0
    while head < limit and kept[head] == tokens[head]:
        head += 1
    assert kept[head:] == tuple(tokens[len(tokens) - (limit - head) :]), "a head and a tail, nothing between"
    assert head < limit, "the tail, with `Answer:` in it, is never lost"
    assert limit - head >= head, "the end matters more than the start"
    assert head >= 1 or limit < 4, "the start matters too"


@pytest.mark.parametrize("make", [letter_sample, text_sample, free_sample])
def test_answers_follow_the_prompt(tokenizer: Any, make: Any) -> None:
    samples = [make(place, random.Random(place)) for place in range(6)]
    prompts = encode(samples, tokenizer, 1000)
    for row, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
        assert (prompt.row, prompt.answer, prompt.truncated) == (row, sample.answer, False)
        assert prompt.prompt == tuple(tokenizer(sample.prompt)["input_ids"])
        assert prompt.prompt + prompt.target == tuple(tokenizer(sample.prompt + sample.target)["input_ids"])
        assert len(prompt.options) == len(sample.options)
        for text, option in zip(sample.options, prompt.options, strict=True):
            assert prompt.prompt + option == tuple(tokenizer(sample.prompt + text)["input_ids"])
        if sample.options:
            assert prompt.options[sample.answer] == prompt.target
        assert prompt.single_token_options == (make is letter_sample)


def test_answers_of_a_cut_prompt_are_whole(tokenizer: Any) -> None:
    sample = letter_sample(0, random.Random(0))
    (whole,), (cut,) = encode([sample], tokenizer, 1000), encode([sample], tokenizer, 8)
    assert cut.truncated
    assert len(cut.prompt) == 8
    assert cut.prompt[-2:] == whole.prompt[-2:] == tuple(tokenizer("Answer :")["input_ids"])
    assert (cut.target, cut.options) == (whole.target, whole.options)


@pytest.mark.parametrize("special", [{}, {"first": 1}, {"last": 2}, {"first": 1, "last": 2}])
def test_special_tokens_stay_out_of_the_answer(special: dict[str, int]) -> None:
    sample = Sample("a", "t", "train", "P:", "P", ("x", "y"), 1, " y", (" x", " y"))
    (prompt,) = encode([sample], Characters(**special), 100)
    assert prompt.options == ((32, ord("x")), (32, ord("y")))
    assert prompt.target == (32, ord("y"))


@pytest.mark.parametrize("own", ["", "\x01"])
@pytest.mark.parametrize("special", [{}, {"first": 1}, {"last": 2}, {"first": 1, "last": 2}])
def test_special_tokens_stand_once_before_the_prompt_and_never_behind(
    special: dict[str, int], own: str
) -> None:
    """Character 1 stands for the text of BOS, which a prompt of a chat template begins with."""
    sample = Sample("a", "t", "train", f"{own}P:", "P", ("x", "y"), 1, " y", (" x", " y"))
    (prompt,) = encode([sample], Characters(**special), 100)
    first = [1] if own or "first" in special else []
    assert prompt.prompt == (*first, ord("P"), ord(":"))
    assert prompt.target == (32, ord("y"))


@given(st.lists(st.text("ab\x01", max_size=5), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_one_bos_for_any_prompt(texts: list[str], first: bool, last: bool) -> None:
    samples = [
        Sample(str(place), "t", "train", f"{text}Q:", "Q", (), -1, " y", ())
        for place, text in enumerate(texts)
    ]
    for sample, prompt in zip(samples, encode(samples, Characters(first * 1, last * 2), 100), strict=True):
        own = [ord(letter) for letter in sample.prompt]
        assert list(prompt.prompt) == ([1, *own] if first and own[0] != 1 else own)


@pytest.mark.parametrize("form", ["<bos> $A", "<bos> $A <eos>", "$A <eos>", "<bos> <bos> $A"])
def test_tokenizers_that_add_special_tokens(form: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<bos>": 1, "<eos>": 2, "w": 3, "A": 4, "Answer:": 5}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    before = [1] * form.count("<bos>")
    for text in ("w Answer:", "<bos> " * len(before) + "w Answer:"):
        sample = Sample("a", "t", "train", text, "w", ("x",), 0, " A", (" A",))
        (prompt,) = encode([sample], tokenizer, 100)
        assert prompt.prompt == (*before, 3, 5) and prompt.target == (4,)


def test_an_answer_that_merges_with_the_prompt_is_tokenised_alone() -> None:
    sample = Sample("a", "t", "train", "P:", "P", ("x",), 0, " x", (" x",))
    (prompt,) = encode([sample], Characters(merges=": "), 100)
    assert prompt.target == (32, ord("x"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt": ""}, "its prompt"),
        ({"target": ""}, "its answer"),
        ({"options": (" A", "", " C", " D")}, "its option ''"),
    ],
    ids=["prompt", "answer", "option"],
)
def test_a_sample_without_tokens_is_named(tokenizer: Any, change: dict[str, Any], what: str) -> None:
    samples = [letter_sample(place, random.Random(place)) for place in range(3)]
    samples[1] = replace(samples[1], **change)
    with pytest.raises(UserError, match=f"sample t/train/1: {what} has no tokens"):
        encode(samples, tokenizer, 100)


@pytest.mark.parametrize(("continuation", "length"), [((), 3), ((7,), 3), ((7, 8, 9), 5)])
def test_the_last_answer_token_is_predicted_and_not_read(continuation: tuple[int, ...], length: int) -> None:
    assert Encoded(0, (1, 2, 3), continuation).length == length


def test_a_token_without_a_row_in_the_embedding_is_named(tokenizer: Any) -> None:
    samples = [letter_sample(place, random.Random(place)) for place in range(4)]
    ids = [set(tokenizer(sample.prompt + sample.target)["input_ids"]) for sample in samples]
    highest = max(max(found) for found in ids)
    first = next(place for place, found in enumerate(ids) if highest in found)
    assert encode(samples, tokenizer, 500, vocabulary=highest + 1) == encode(samples, tokenizer, 500)
    with pytest.raises(UserError, match=f"sample {samples[first].id}: its token {highest} ") as caught:
        encode(samples, tokenizer, 500, vocabulary=highest)
    assert f"which has {highest}" in caught.value.message and "model.path" in str(caught.value.fix)
