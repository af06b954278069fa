"""The filters of lm-evaluation-harness by name, against the harness's own code."""

from __future__ import annotations

import random
from typing import Any

import pytest

from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.evaluation.answers import read_answer
from roma_ds.evaluation.reading import harness_filters as ours

NUMBERS = ["#### ", "####", "12", "1,234", "-3", ".5", "$", " ", "\n", "."]
PIECES = [
    *NUMBERS,
    "The answer is ",
    "(B)",
    "(Z)",
    "A",
    ": C",
    "gold",
    "Gold ",
    "gold ring",
    "!",
    "B",
    "é",
    "－",
]
CHOICES = ("gold", "Gold ring", "iron.", "zinc")


def test_the_mark_is_strict_and_the_last_number_flexible() -> None:
    sample = Sample("id", "gsm8k", "test", "p", "q", (), -1, " 1,800", ())
    for text, strict, flexible in (
        ("so 5.\n#### 1800", True, True),
        ("#### 1,800.\n#### 7", True, False),
        ("It is $1,800.", False, True),
        ("\\boxed{1800} in 3 steps", False, False),
        ("####1800", False, True),
        ("#### 1800.00", False, False),
    ):
        assert read_answer(sample, text, "strict-match").correct is strict, text
        assert read_answer(sample, text, "flexible-extract").correct is flexible, text
    assert read_answer(sample, "many", "strict-match").extracted == ""


def test_letters_by_the_first_line_or_the_last_in_parentheses() -> None:
    sample = Sample("id", "mmlu", "test", "p", "q", CHOICES, 1, " B", letters(4))
    for text, strict, flexible in (
        (" B", 1, -1),
        ("b.\nA", 1, -1),
        ("The answer is (B). Not A", -1, 1),
        ("gold ring", -1, 1),
        ("Answer: B", -1, 1),
        ("(A) or (B)", -1, 1),
        ("\nB", -1, -1),
        ("(Z)", -1, -1),
    ):
        assert read_answer(sample, text, "strict-match").predicted == strict, text
        assert read_answer(sample, text, "flexible-extract").predicted == flexible, text
    texts = Sample("id", "boolq", "test", "p", "q", ("no", "yes"), 1, " yes", (" no", " yes"))
    assert read_answer(texts, " Yes.\nno", "strict-match").correct
    free = Sample("id", "t", "test", "p", "q", (), -1, " the Nile", ())
    assert read_answer(free, "The Nile!", "strict-match").correct
    assert not read_answer(free, "Nile", "flexible-extract").correct


def test_filters_and_metric_are_those_of_the_harness() -> None:
    extraction: Any = pytest.importorskip("lm_eval.filters.extraction")
    metrics: Any = pytest.importorskip("lm_eval.api.metrics")
    drawn = random.Random(0)
    texts = ["".join(drawn.choices(PIECES, k=drawn.randint(0, 9))) for _ in range(1_000)]
    documents = [{"choices": list(CHOICES)}] * len(texts)
    responses = [[text] for text in texts]

    def filtered(one: Any) -> list[str]:
        return [found[0] for found in one.apply(responses, documents)]

    strict = filtered(extraction.RegexFilter("#### (\\-?[0-9\\.\\,]+)"))
    flexible = filtered(extraction.RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1))
    assert [ours.strict_number(text) for text in texts] == strict
    assert [ours.flexible_number(text) for text in texts] == flexible
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    for said in {*strict, *flexible}:
        exact = metrics.exact_match_fn(
            predictions=[said],
            references=["so 1,234\n#### 1,234"],
            regexes_to_ignore=ignored,
            ignore_case=True,
        )
        assert ours.exact_number("1,234", said) == bool(exact["exact_match"])
    lines = filtered(extraction.RegexFilter("^(.*?)(?=\\n|$)"))
    assert [ours.first_line(text) for text in texts] == [
        line.strip() if line != ours.INVALID else line for line in lines
    ]
    chosen = extraction.MultiChoiceRegexFilter(
        "(\\([A-Z]\\))", group_select=-1, ignore_case=True, ignore_punctuation=True
    )
    for text, named in zip(texts, filtered(chosen), strict=True):
        place = ours.flexible_option(text, CHOICES)
        assert named == (f"({'ABCD'[place]})" if place != ours.NONE else ours.INVALID) or named == "(Z)", text
