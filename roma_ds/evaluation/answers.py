"""What a generated text says: an option, a number, or a text; and whether that is the right answer.

A model may think aloud before it answers and explain behind it, so neither the first nor the last letter or
number counts, but what is stated.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from roma_ds.config.schema import Answers
from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.evaluation.reading import harness_filters
from roma_ds.evaluation.reading.expressions import boxed, is_expression, same_expression
from roma_ds.evaluation.reading.option_letters import option_letter
from roma_ds.evaluation.reading.option_texts import option_text
from roma_ds.evaluation.reading.prose import flowing, marked, readable, said
from roma_ds.evaluation.reading.quantities import Quantity, quantity, same
from roma_ds.evaluation.reading.stated_numbers import final_number
from roma_ds.evaluation.reading.wording import ANSWER, COPULA, FINAL

NONE = -1
_ARTICLES = ("a", "an", "the")
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_EMPHASIS = re.compile(r"\*\*|`|~~|\"")
_HASHED = re.compile(r"(?<!#)####(?!#)[ \t]*(\S[^\n]*)")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")


@dataclass(frozen=True)
class Answer:
    """What was read out of a generated text."""

    predicted: int
    """Number of the option, -1 where none was given or there are none."""
    extracted: str
    """The letter, number or text that counts; empty where there is none: the text could not be read."""
    correct: bool


def read_answer(sample: Sample, text: str, how: Answers = "roma") -> Answer:
    """The answer that `text`, generated after the prompt of `sample`, gives; for any text.

    how: `roma` reads it as `roma_ds/evaluation/reading/` says: options by letter, else by their texts; a
    reference that is a number by its value; a formula by math-verify; any other reference by the stated
    answer or the first line, without case, articles, punctuation and extra space. `strict-match` and
    `flexible-extract` are the filters of lm-evaluation-harness.
    """
    if how != "roma":
        return _as_the_harness(sample, text, strict=how == "strict-match")
    if sample.options:
        # Behind a chat template options begin without a space.
        named = [one.strip() for one in sample.options] == [
            one.strip() for one in letters(len(sample.options))
        ]
        place = (
            option_letter(text, len(sample.options), sample.choices)
            if named
            else _option(text, [option.strip() for option in sample.options])
        )
        return _of_option(sample, place)
    reference = sample.target.strip()
    if (wanted := quantity(marked(readable(reference)))) is not None:
        return _of_number(reference, wanted, text)
    return _of_text(reference, text)


_NUMBERS_ALONE = re.compile(r"\s*\d[\d.]*[,;]?(?:\s+(?:[,;]|\d[\d.]*[,;]?))+\s*")


def plain(text: str) -> str:
    """Lower case words without articles and punctuation, one space between them."""
    kept = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in kept.split() if word not in _ARTICLES)


def stated_answer(text: str) -> str:
    """The answer that a worked solution ends in, as it writes it; empty where it states none.

    What is boxed, else the line behind the last `####`, else what is stated last; of a single line without
    any of these, the line.
    """
    outside = said(readable(text))[0]
    if box := boxed(outside):
        return box
    if hashed := list(_HASHED.finditer(outside)):
        return hashed[-1][1].strip()
    if statements := _statements(outside):
        return statements[-1].rstrip(".")
    lines = outside.strip().split("\n")
    return lines[0].strip() if len(lines) == 1 else ""


def _of_option(sample: Sample, place: int) -> Answer:
    return Answer(place, sample.options[place].strip() if place != NONE else "", place == sample.answer)


def _option(text: str, options: list[str]) -> int:
    """Options by text; where all are numbers, by value."""
    values = [quantity(marked(readable(option))) for option in options]
    numbers = [value for value in values if value is not None]
    found = None
    if len(numbers) == len(options):
        # A list of numbers without a word is an answer that ran on: its first one counts.
        ran_on = _NUMBERS_ALONE.fullmatch(text) and quantity(text.strip()) is None
        found = quantity(text.split()[0].strip(",;")) if ran_on else final_number(text)
    if found:
        fitting = [place for place, value in enumerate(numbers) if same(value, found)]
        return fitting[0] if len(fitting) == 1 else NONE
    return option_text(text, options)


def _of_number(reference: str, wanted: Quantity, text: str) -> Answer:
    box = boxed(said(readable(text))[0])
    if box and is_expression(box) and quantity(marked(readable(box))) is None:
        return Answer(NONE, box, same_expression(reference, box))
    found = final_number(text)
    return Answer(NONE, "" if found is None else str(found), found is not None and same(wanted, found))


def _of_text(reference: str, text: str) -> Answer:
    outside, only_thought = said(readable(text))
    lines = [] if only_thought else [line.strip() for line in outside.split("\n") if line.strip()][:1]
    statements = _statements(outside)
    wanted = readable(reference)
    if is_expression(wanted):
        formulas = [found[1] or found[2] for found in _FORMULA.finditer(outside)][-1:]
        formula = boxed(outside) or (statements[-1:] or formulas or lines or [""])[0].strip()
        return Answer(NONE, formula, same_expression(wanted, formula))
    given = [*statements[-1:], *lines]
    right = any(_alike(one, wanted) for one in given)
    return Answer(NONE, given[0] if given else "", right)


def _alike(one: str, other: str) -> bool:
    said_plain, wanted = plain(one), plain(other)
    if said_plain == wanted:
        return bool(wanted)
    return any(map(str.isdigit, wanted)) and said_plain.replace(" ", "") == wanted.replace(" ", "")


def _statements(text: str) -> list[str]:
    """What stands behind "the answer is" in its sentence; what is marked as final alone, if anything is."""
    prose = _EMPHASIS.sub("", flowing(marked(text)))
    found, final = [], []
    for word in list(ANSWER.finditer(prose))[-100:]:
        if word[0] == FINAL:
            final.append(prose[word.end() : word.end() + 2000].split("\n")[0].strip())
            continue
        sentence = _SENTENCE.split(prose[word.end() : word.end() + 400], maxsplit=1)[0]
        if copula := COPULA.search(sentence[:60]):
            found.append(sentence[copula.end() :].strip())
    return [one for one in final or found if one]


def _as_the_harness(sample: Sample, text: str, strict: bool) -> Answer:
    if sample.options:
        if strict:
            place = harness_filters.strict_option(text, sample.options)
        else:
            place = harness_filters.flexible_option(text, sample.choices)
        return _of_option(sample, place)
    reference = sample.target.strip()
    if quantity(reference) is not None:
        said_number = harness_filters.strict_number(text) if strict else harness_filters.flexible_number(text)
        right = harness_filters.exact_number(reference, said_number)
        return Answer(NONE, "" if said_number == harness_filters.INVALID else said_number, right)
    line = harness_filters.first_line(text)
    return Answer(NONE, line, bool(line) and harness_filters.exact_text(reference, line))
