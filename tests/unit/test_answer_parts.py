"""Answers built from parts: announcement, form, what encloses it, what follows, what was thought."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from roma_ds.config.schema import Answers
from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.evaluation.answers import read_answer

CHOICES = ("gold", "lead", "iron", "zinc")
THOUGHT = st.sampled_from(
    [
        "",
        "\n\n",
        "<think>\nI believe the answer is {wrong}. Hmm, or {right}?\n</think>\n\n",
        "<think></think>",
        "It could be {wrong}. #### {wrong} </think>\n",
        "<reasoning>\\boxed{{{wrong}}}?</reasoning>\n",
        "[THINK]{wrong}[/THINK]",
        "<|channel|>analysis<|message|>The answer is {wrong}.<|end|><|channel|>final<|message|>",
    ]
)
ANNOUNCED = st.sampled_from(
    [
        "",
        "The answer is ",
        "The correct answer is: ",
        "So the answer is therefore ",
        "Therefore, the answer must be ",
        "the ANSWER is ",
        "Answer: ",
        "answer:\n\n",
        "**Answer:** ",
        "### Final answer\n\n",
        "My final answer is ",
        "The answer would definitely be ",
        "Let us see. The answer is not {wrong} but ",
        "The answer is {wrong}. Wait, no, it is ",
        "First I thought of {wrong}. The answer is ",
        "答案是",
        "正确答案：",
        "答えは",
        "정답: ",
        "La réponse est ",
        "La respuesta correcta es ",
        "Die richtige Antwort ist ",
        "Ответ: ",
        "A resposta é ",
        "La risposta corretta è ",
    ]
)
ENCLOSED = st.sampled_from(
    [
        "{}",
        "**{}**",
        "*{}*",
        "`{}`",
        "({})",
        "[{}]",
        '"{}"',
        "“{}”",
        "${}$",
        "\\({}\\)",
        "\\boxed{{{}}}",
        "$\\boxed{{\\text{{{}}}}}$",
        "<answer>{}</answer>",
        "<b>{}</b>",
        '{{"answer": "{}"}}',
    ]
)
FOLLOWS = st.sampled_from(
    [
        "",
        ".",
        ".\n",
        "\n\nThis is what the text says.",
        ". {wrong} is wrong.",
        ", not {wrong}.",
        " (see step 3).",
        "\n\nExplanation: one might think of {wrong}, but that is a mistake.",
        "\n\nQuestion: And what of {wrong}?\nAnswer: {wrong}",
        "</s>",
    ]
)
parts = st.tuples(THOUGHT, ANNOUNCED, ENCLOSED, FOLLOWS)


def built(chosen: tuple[str, str, str, str], right: str, wrong: str) -> str:
    thought, announced, enclosed, follows = chosen
    before = f"{thought}{announced}".format(right=right, wrong=wrong)
    return f" {before}{enclosed.format(right)}{follows.format(right=right, wrong=wrong)}"


def sample(answer: int = -1, options: tuple[str, ...] = (), reference: str = "") -> Sample:
    target = options[answer] if options else f" {reference}"
    return Sample("id", "t", "test", "p", "q", CHOICES if options else (), answer, target, options)


@settings(max_examples=200, deadline=None)
@given(parts, st.integers(0, 3), st.integers(0, 3), st.sampled_from(["{}", "{}. {text}", "{}) {text}", "Ｘ"]))
def test_letters(chosen: tuple[str, str, str, str], right: int, wrong: int, form: str) -> None:
    if wrong == right:
        wrong = (right + 1) % 4
    letter = chr(ord("Ａ") + right) if form == "Ｘ" else form.format("ABCD"[right], text=CHOICES[right])
    text = built(chosen, letter, "ABCD"[wrong])
    answer = read_answer(sample(right, letters(4)), text)
    assert answer.predicted == right, text


@settings(max_examples=150, deadline=None)
@given(parts, st.integers(0, 3), st.integers(1, 3))
def test_texts_of_options(chosen: tuple[str, str, str, str], right: int, further: int) -> None:
    options = tuple(f" {choice}" for choice in CHOICES)
    text = built(chosen, CHOICES[right], CHOICES[(right + further) % 4])
    assert read_answer(sample(right, options), text).predicted == right, text
    assert read_answer(sample(right, letters(4)), text).predicted == right, text


FORMS = {
    "9500": ["9500", "9,500", "9 500", "9\u202f500", "9'500", "9{{,}}500", "9\\,500", "9500.00", "9.5e3",
             "９５００"],
    "-3": ["-3", "−3", "-3.0", "\\frac{{-6}}{{2}}", "minus 3"],
    "0.5": [".5", "0.5", "0,5", "1/2", "½", "50%", "\\frac{{1}}{{2}}", "\\dfrac12", "0.50 meters"],
    "18 dollars": ["18", "$18", "18 dollars", "\\$18.00", "€18"],
    "50%": ["50%", "50 percent", "50\\%", "0.5"],
    "3/4": ["3/4", "0.75", "75%", "¾", "\\tfrac{{3}}{{4}}"],
    "+5": ["5", "+5", "5.0"],
    "2.5": ["2 1/2", "2½", "5/2", "2\\frac{{1}}{{2}}"],
    "1,234,567": ["1234567", "1.234.567", "1 234 567", "12,34,567"],
}  # fmt: skip
NUMBERS = st.sampled_from(
    [(reference, form.format()) for reference, forms in FORMS.items() for form in forms]
)


@settings(max_examples=250, deadline=None)
@given(parts, NUMBERS)
def test_numbers(chosen: tuple[str, str, str, str], number: tuple[str, str]) -> None:
    reference, form = number
    text = built(chosen, form, "77")
    assume("(0,5" not in text and "[0,5" not in text)  # A pair is not a number.
    assert read_answer(sample(reference=reference), text).correct, text
    assert not read_answer(sample(reference="78"), text).correct, text


ODD = [
    *"ABC ,.()#$\\{}1/9^-\n",
    "answer is ",
    "wait, no ",
    "<think>",
    "</think>",
    "\\boxed{",
    "gold",
    "not ",
    "\ud800",
]
TEXTS = st.text(max_size=80) | st.lists(st.sampled_from(ODD), max_size=30).map("".join)
WAYS: list[Answers] = ["roma", "strict-match", "flexible-extract"]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.sampled_from(WAYS))
def test_no_text_is_too_odd(text: str, how: Answers) -> None:
    options = tuple(f" {choice}" for choice in CHOICES)
    for one in (
        sample(1, letters(4)),
        sample(1, options),
        sample(reference="12"),
        sample(reference="the Nile"),
    ):
        answer = read_answer(one, text, how)
        assert -1 <= answer.predicted < 4 and isinstance(answer.extracted, str)
        assert not answer.correct or answer.extracted


@pytest.mark.parametrize(
    "piece", ["<think>", "\\boxed{", "answer is ", "A and B, ", "\n", "1 ", "1/", "(", "#### ", "no, wait "]
)
def test_no_long_text_takes_long(piece: str) -> None:
    options = tuple(f" {choice}" for choice in CHOICES)
    started = time.process_time()
    for one in (
        sample(1, letters(4)),
        sample(1, options),
        sample(reference="12"),
        sample(reference="the Nile"),
    ):
        read_answer(one, piece * (20_000 // len(piece)))
    assert time.process_time() - started < 10
