"""What a generated text says: an option, a number, or a text; and whether that is the right answer.

A model may think aloud before it answers, so the last thing stated counts, not the first letter.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters

_NUMBER = re.compile(r"(?:(?<![\w.])-)?\$?\d[\d,]*(?:\.\d+)?")
_OPENING = r"[\s:=\-*\"'(\[]*"
_STATED = re.compile(
    rf"(?:\b[Aa]nswers?(?:\s+(?:is|was|are|would be|should be|must be))?|\b(?:[Oo]ption|[Cc]hoice)){_OPENING}"
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?([A-Z])(?![\w'’])"
)
# A text that begins with a word: "A dog", "I think".
_LEADING = re.compile(rf"^{_OPENING}([AI](?!\s+[a-z])|[B-HJ-Z])(?![\w'’])")
_MARK = "####"
NONE = -1


@dataclass(frozen=True)
class Answer:
    """What was read out of a generated text."""

    predicted: int
    """Number of the option, -1 where none was given or there are none."""
    extracted: str
    """The letter, number or text that counts; empty where there is none."""
    correct: bool


def read_answer(sample: Sample, text: str) -> Answer:
    """The answer that `text`, generated after the prompt of `sample`, gives.

    Options by letter: the last letter that is stated ("the answer is C", "Answer: C", "option C"), else one
    that the text begins with. Options by text: the longest one that the text begins with. A reference that
    is a number: the number after `####`, the mark of gsm8k's solutions, else the last number. Any other
    reference: the first line, without case, articles, punctuation and extra space.
    """
    if sample.options:
        named = sample.options == letters(len(sample.options))
        place = option_letter(text, len(sample.options)) if named else _option_text(text, sample.options)
        extracted = sample.options[place].strip() if place != NONE else ""
        return Answer(place, extracted, place == sample.answer)
    reference = sample.target.strip()
    if (wanted := _whole_number(reference)) is not None:
        number = final_number(text)
        return Answer(NONE, "" if number is None else format(number.normalize(), "f"), number == wanted)
    line = text.strip().split("\n")[0].strip()
    return Answer(NONE, line, bool(line) and plain(line) == plain(reference))


def option_letter(text: str, count: int) -> int:
    """Number of the option among the first `count` letters that `text` settles on, -1 where it does not."""
    allowed = string.ascii_uppercase[:count]
    stated = [letter for letter in _STATED.findall(text) if letter in allowed]
    if stated:
        return allowed.index(stated[-1])
    leading = _LEADING.match(text)
    return allowed.index(leading[1]) if leading and leading[1] in allowed else NONE


def final_number(text: str) -> Decimal | None:
    """The number that a worked solution ends in: after the first `####`, else the last one."""
    _, marked, after = text.partition(_MARK)
    if marked and (first := _NUMBER.search(after)):
        return _value(first[0])
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def plain(text: str) -> str:
    """Lower case words without articles and punctuation, one space between them."""
    kept = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


def _option_text(text: str, options: tuple[str, ...]) -> int:
    said = text.strip().casefold()
    fitting = [place for place, option in enumerate(options) if said.startswith(option.strip().casefold())]
    return max(fitting, key=lambda place: len(options[place]), default=NONE)


def _whole_number(text: str) -> Decimal | None:
    return _value(text) if _NUMBER.fullmatch(text) else None


def _value(number: str) -> Decimal | None:
    try:
        return Decimal(number.replace("$", "").replace(",", ""))
    except InvalidOperation:
        return None
