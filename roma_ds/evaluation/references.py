"""The right final answer of a training sample, by which generated answers are judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from roma_ds.data.sample import Sample
from roma_ds.data.templates import letters
from roma_ds.evaluation.answers import stated_answer
from roma_ds.evaluation.reading.option_letters import option_letter
from roma_ds.evaluation.reading.prose import marked, readable
from roma_ds.evaluation.reading.quantities import quantity
from roma_ds.evaluation.reading.stated_numbers import final_number

UNNAMED = 26
"""Letters that an answer may give where the row names no options."""
_LETTER = re.compile(r"[(\[]?([A-Z])[)\].]*")


def referenced(sample: Sample, judge: str) -> Sample | None:
    """The sample as `read_answer` needs it, its target the right final answer alone; None without one.

    judge: a name of `JUDGES`, of `roma_ds.config.sources`.
    """
    if sample.options:
        return sample if judge in ("final", "letter" if _are_letters(sample) else "text") else None
    given = sample.final
    if judge == "final":
        judge = _kind(sample)
    if judge == "letter":
        return _by_letter(sample, given)
    if judge == "number":
        found = final_number(given or sample.target)
        return _alone(sample, str(found)) if found is not None else None
    if judge == "text":
        if given in sample.choices:
            return _by_place(sample, sample.choices.index(given), [f" {choice}" for choice in sample.choices])
        text = given or stated_answer(sample.target)
        return _alone(sample, text) if text else None
    return None


def _kind(sample: Sample) -> str:
    """What the final answer of a sample without options is; empty where none is stated."""
    if sample.choices and sample.final:
        return "letter" if sample.final not in sample.choices else "text"
    text = sample.final or stated_answer(sample.target)
    if not text:
        return ""
    if quantity(marked(readable(text))) is not None:
        return "number"
    return "letter" if _LETTER.fullmatch(text.strip().rstrip(".")) else "text"


def _by_letter(sample: Sample, given: str) -> Sample | None:
    count = len(sample.choices) or UNNAMED
    named = _LETTER.fullmatch(given.strip())
    if named:
        place = ord(named[1]) - ord("A")
    elif given in sample.choices:
        place = sample.choices.index(given)
    else:
        place = option_letter(given or sample.target, count, sample.choices)
    if not 0 <= place < count:
        return None
    return _by_place(sample, place, letters(count))


def _by_place(sample: Sample, place: int, options: Sequence[str]) -> Sample:
    return replace(sample, options=tuple(options), answer=place, target=options[place])


def _alone(sample: Sample, answer: str) -> Sample:
    return replace(sample, target=answer)


def _are_letters(sample: Sample) -> bool:
    return [one.strip() for one in sample.options] == [one.strip() for one in letters(len(sample.options))]
