"""What is read from a generated text, for a question of each kind."""

from __future__ import annotations

from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.evaluation.answers import Answer, read_answer

CHOICES = ("gold", "lead", "iron", "zinc")


def by_letter(text: str, answer: int = 2) -> Answer:
    sample = Sample("id", "t", "test", "p", "q", CHOICES, answer, letters(4)[answer], letters(4))
    return read_answer(sample, text)


def by_text(text: str, choices: tuple[str, ...]) -> Answer:
    options = tuple(f" {choice}" for choice in choices)
    return read_answer(Sample("id", "t", "test", "p", "q", choices, 0, options[0], options), text)


def by_reference(text: str, reference: str) -> Answer:
    return read_answer(Sample("id", "t", "test", "p", "q", (), -1, f" {reference}", ()), text)
