"""The demo suite generates what it promises, and the packaged checkpoint answers as its card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import roma_ds.demo.suite as suite_module
from roma_ds.demo.skills import ADJECTIVES, ANIMALS, COUNTRIES, SKILLS
from roma_ds.demo.suite import SPLITS, generate, natural, phrasing_group
from roma_ds.demo.vocabulary import build_tokenizer, words

MODEL = Path(suite_module.__file__).parent / "model"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    """600 rows of every split."""
    return {split: generate(split, 600, seed=3) for split in SPLITS}


def test_rows_depend_on_split_count_and_seed_only():
    assert generate("train", 50, seed=1) == generate("train", 50, seed=1)
    assert generate("train", 50, seed=1) == generate("train", 90, seed=1)[:50]
    assert generate("train", 50, seed=1) != generate("train", 50, seed=2)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="dev"):
        generate("dev", 1, seed=0)


def test_rows_are_well_formed(rows):
    for members in rows.values():
        assert len({row["id"] for row in members}) == len(members)
        for row in members:
            assert len(set(row["choices"])) == 4
            assert 0 <= row["answer"] < 4
            options = " , ".join(row["choices"])
            body, rest = row["prompt"].removeprefix("Question : ").split(" Options : ")
            assert rest == f"{options} . Answer :"
            assert row["question"] == natural(body)


def test_skills_are_balanced(rows):
    assert len(SKILLS) >= 15
    for members in rows.values():
        counts = [sum(row["skill"] == skill for row in members) for skill in SKILLS]
        assert max(counts) - min(counts) <= 1


def test_splits_share_no_prompt_and_no_question():
    for key in ("prompt", "question"):
        found = [{row[key] for row in generate(split, 3000, 0)} for split in SPLITS[-3:]]
        train, validation, test = found
        assert not (train & validation or train & test or validation & test)


def test_splits_use_their_phrasing_groups():
    groups = {split: {phrasing_group(row["phrasing"]) for row in generate(split, 500, 0)} for split in SPLITS}
    assert groups["known"] == {"known"}
    assert groups["train"] == {"known", "train"}
    assert groups["validation"] == {"validation"}
    assert groups["test"] == {"test"}
    assert groups["base"] == {"known", "train", "validation", "test", "mixed"}


def _column(table: str, place: int) -> dict[str, str]:
    return {line.split()[0]: line.split()[place] for line in table.strip().splitlines()}


def _reference(skill: str, body: str) -> str | None:
    """The answer worked out from the words of the question alone; None for skills not covered."""
    numbers = [int(word) for word in re.findall(r"\d+", body)]
    arithmetic = {
        "sum": sum,
        "difference": lambda pair: max(pair) - min(pair),
        "larger": max,
        "smaller": min,
        "double": lambda pair: 2 * pair[0],
        "half": lambda pair: pair[0] // 2,
        "triple": lambda pair: 3 * pair[0],
    }
    if skill in arithmetic:
        return str(arithmetic[skill](numbers))
    tables = {
        "capital": (COUNTRIES, 1),
        "currency": (COUNTRIES, 4),
        "opposite": (ADJECTIVES, 1),
        "superlative": (ADJECTIVES, 4),
        "young": (ANIMALS, 1),
        "class": (ANIMALS, 4),
    }
    if skill in tables:
        column = _column(*tables[skill])
        (word,) = set(body.split()) & set(column)
        return column[word]
    return None


def test_answers_agree_with_an_independent_check():
    checked = set()
    for row in generate("base", 3000, 5):
        body = row["prompt"].split(" Options : ")[0]
        expected = _reference(row["skill"], body)
        if expected is not None:
            checked.add(row["skill"])
            assert row["choices"][row["answer"]] == expected, row
    assert len(checked) >= 12


def test_order_of_difference_is_larger_first():
    for row in generate("test", 500, 0):
        if row["skill"] == "difference":
            assert int(row["choices"][row["answer"]]) > 0


def test_every_word_is_one_known_token(rows):
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(words()) + 3
    for members in rows.values():
        for row in members:
            text = f"{row['prompt']} {row['choices'][row['answer']]}"
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids


def test_checkpoint_is_small_and_has_the_suites_tokenizer():
    from transformers import AutoTokenizer

    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 10 * MEGABYTE
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoint_answers_as_its_card_says(dtype):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from roma_ds.demo.encoding import accuracy

    card = (MODEL / "README.md").read_text()
    claimed = float(re.search(r"^\| known \| ([0-9.]+)", card, re.MULTILINE).group(1))
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = 100 * accuracy(model, tokenizer, generate("known", 480, seed=21))
    assert found > claimed - 3
