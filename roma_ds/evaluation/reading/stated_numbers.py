"""Which number a worked solution ends in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from roma_ds.evaluation.reading.prose import before_next_question, flowing, marked, readable, said
from roma_ds.evaluation.reading.quantities import Quantity, mathematical, quantities, quantity
from roma_ds.evaluation.reading.wording import (
    ANSWER,
    COPULA,
    CORRECTED,
    CORRECTION,
    DENIAL,
    FINAL,
    INSTEAD,
    WEAKENED,
)

_FEW, _MOST = 20, 100
_HASH = re.compile(r"(?<!#)####(?!#)\s*(?:[*\\($\[{]*)(?=[^\w\n]{0,4}\.?\d)([^\n]*)")
_HEADING = re.compile(r"\d+[.):]\s+[A-Za-z*]")
_REFERRED = re.compile(
    r"\b(?:steps?|equations?|eqs?|questions?|problems?|parts?|examples?|lines?|figures?|fig|tables?"
    r"|pages?|sections?|notes?|"
    r"cases?|options?|items?|chapters?|choices?|not|than|instead of|no|nicht|rather than)\b\.?\s*[#(]?\s*$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:\bnot|n't|\bnever|\bnicht|\bno es|≠|!=|\\neq?)(?: be| equal)?\s*$", re.IGNORECASE)
_ASIDE = re.compile(r"\([^()\n]*[A-Za-z]{2}[^()\n]*\)|\[[^\[\]\n]*[A-Za-z]{2}[^\[\]\n]*\]")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_OPERATOR = re.compile(r"\s*(?:[A-Za-z%°]{0,12}\s*)?(?:[-+*/×·=≈]|\\times|\\cdot|\\div|\\approx)\s*[(]?\s*$")
_EQUALS = re.compile(r"[=≈]|\\approx")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n|。")
_EXPLAINED = re.compile(
    r"\s*[A-Za-z%°]{0,10}(?:\s*$|\s*\n|\s*[.;:,(—]\s*(?=\D|$)|\s+-\s|\s+(?:because|since|as|for|due"
    r"|which|weil|car|porque)\b)"
)
_LISTED = re.compile(r"^\s*(\d+)[.)]\s", re.MULTILINE)
_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: 10 * number
    for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)
}
_WORD = re.compile(
    rf"\b(minus |negative )?({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:[- ](one|two|three|four"
    rf"|five|six|seven|eight|nine))?\b"
)


def final_number(text: str) -> Quantity | None:
    """The number that a text gives as its answer.

    What is boxed or tagged, else what follows `####`, else the last number that is stated ("the answer is"),
    else the one that the text begins with before it explains, else the last one, asides apart.
    """
    whole, only_thought = said(readable(text))
    first = before_next_question(whole)
    for part in (first, whole) if first != whole else (whole,):
        if found := _final(part, only_thought):
            return found
    return None


def _final(text: str, only_thought: bool) -> Quantity | None:
    prose = mathematical(flowing(marked(_without_hashes(text)))).replace("*\n", "\n")
    for start in reversed([mark.end() for mark in re.finditer(FINAL, prose)][-_FEW:]):
        line = prose[start:].split("\n")[0]
        if found := quantity(line) or _of_sentence(line):
            return found
    if found := _hashed(text):
        return found
    corrected = _corrected(prose)
    if found := _stated(prose):
        return corrected if corrected and corrected.start > found.start else found
    if corrected or only_thought:
        return corrected
    return _leading(prose) or _last(prose) or _worded(prose)


def _without_hashes(text: str) -> str:
    return text.replace("####", "\n")


def _hashed(text: str) -> Quantity | None:
    """The number of the first line behind `####`, which is no heading."""
    lines = [mark[1] for mark in _HASH.finditer(text)][:_FEW]
    for line in lines:
        if _HEADING.match(line) and len(lines) > 1:
            continue
        for found in quantities(mathematical(marked(line))):
            return found
    return None


def _of_sentence(sentence: str, start: int = 0, place: int = 0) -> Quantity | None:
    """The first number behind `start`, or the result of the calculation that begins with it."""
    chain: list[Quantity] = []
    for one in quantities(sentence):
        if one.start < start:
            continue
        if chain and not _OPERATOR.fullmatch(sentence[chain[-1].end : one.start]):
            break
        chain.append(one)
    if not chain:
        return None
    results = [
        one for before, one in itertools.pairwise(chain) if _EQUALS.search(sentence[before.end : one.start])
    ]
    best = results[-1] if results else chain[0]
    if not results and sentence[best.start - 1 : best.start] == "(":
        best = _last_of_tuple(sentence, best)
    return Quantity(best.values, best.percent, best.start + place, best.end + place)


def _last_of_tuple(sentence: str, first: Quantity) -> Quantity:
    end = sentence.find(")", first.start)
    inside = [one for one in quantities(sentence) if first.start <= one.start < end]
    return inside[-1] if inside and not re.search(r"[A-Za-z]", sentence[first.start : end]) else first


def _stated(prose: str) -> Quantity | None:
    """The number of the last sentence that says what the answer is."""
    for word in reversed(list(ANSWER.finditer(prose))[-50:]):
        end = _SENTENCE.search(prose, word.end(), word.end() + 400)
        stop = end.start() if end else word.end() + 400
        sentence = prose[word.end() : stop]
        ahead = _SENTENCE.split(prose[max(0, word.start() - 80) : word.start()])[-1]
        copula = COPULA.search(sentence)
        start = copula.end() if copula else None
        if start is None:
            if not re.match(r"[\s(*\[{]{0,4}[-+]?\.?\d", sentence):
                continue
            start = 0
        if copula and _of_sentence(sentence[: copula.start()]) and copula[0] in "-—":
            start = 0
        denial = DENIAL.search(sentence)
        if denial:
            instead = INSTEAD.search(sentence, denial.end())
            first = _of_sentence(sentence, start)
            if first and first.start < denial.start():
                pass
            elif instead is None:
                continue
            else:
                start = instead.end()
        if WEAKENED.search(ahead):
            continue
        if found := _of_sentence(sentence, start, word.end()):
            return found
        if found := _worded(sentence[start:], word.end() + start):
            return found
    return None


def _corrected(prose: str) -> Quantity | None:
    last = None
    for one in list(quantities(prose))[-_MOST:] if CORRECTION.search(prose) else ():
        window = prose[max(0, one.start - 90) : one.start]
        if CORRECTED.search(window):
            last = _of_sentence(prose[one.start : one.start + 120].split("\n")[0], 0, one.start)
    return last


def _leading(prose: str) -> Quantity | None:
    """The number that the text begins with, where it is not part of a calculation, a list or a sentence."""
    text = prose.lstrip(" \t\n=*(:")
    first = next(quantities(text), None)
    if first is None or text[: first.start].strip("*([-:= ") or len(set(_LISTED.findall(prose))) > 1:
        return None
    behind = text[first.end :].lstrip("*)]")
    explained = _EXPLAINED.match(behind)
    if not explained or (
        re.match(r"\s*[.)]\s+[A-Z].*\d", behind)
        and not re.match(r"\s*\.\s+(?:explanation|because|reason|this|that|it|since)", behind, re.IGNORECASE)
    ):
        return None
    if re.match(r"\s*[,;]\s*\d", behind):
        return None
    return first


def _last(prose: str) -> Quantity | None:
    """The last number, one in an aside or in a reference to a step only where there is no other."""
    body = _ASIDE.sub(lambda aside: " " * len(aside[0]), prose)
    found = list(quantities(prose))[-_MOST:]
    counting = _counting(body, list(quantities(body))[-_MOST:]) or _counting(prose, found)
    undenied = [one for one in found if not _DENIED.search(prose[max(0, one.start - 20) : one.start])]
    best = counting or undenied
    return best[-1] if best else None


def _counting(prose: str, found: Sequence[Quantity]) -> list[Quantity]:
    return [
        one
        for one in found
        if not _REFERRED.search(prose[max(0, one.start - 20) : one.start])
        and not _ORDINAL.match(prose, one.end)
        and prose[one.end : one.end + 1] != "?"
    ]


def _worded(sentence: str, place: int = 0) -> Quantity | None:
    """A number written in words, where they are all that is left of the sentence's beginning."""
    for found in _numbers_in_words(sentence):
        if len(sentence[: found.start].split()) <= 3:
            return Quantity(found.values, False, found.start + place, found.end + place)
    return None


def _numbers_in_words(sentence: str) -> Iterator[Quantity]:
    for found in _WORD.finditer(sentence.lower()):
        value = _WORDS[found[2]] + (_WORDS[found[3]] if found[3] and _WORDS[found[2]] >= 20 else 0)
        yield Quantity((Fraction(-value if found[1] else value),), False, found.start(), found.end())
