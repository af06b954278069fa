"""In-context learning: the nearest successful neighbours as solved examples before each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roma_ds.data.chat import ChatTemplate, after, templated, user_texts
from roma_ds.data.message import Message
from roma_ds.data.sample import Sample

SEPARATOR = "\n\n"


def with_examples(
    questions: Sequence[Sample],
    reference: Sequence[Sample],
    neighbours: NDArray[np.int64],
    chat: ChatTemplate | None = None,
) -> list[Sample]:
    """The questions with solved examples before their prompts and contexts, the most similar one last.

    neighbours: int64 [questions, k], rows of `reference`, nearest first, -1 where there are fewer. chat: what
    wrote the prompts, if anything; examples are then turns.
    """
    found = []
    for question, ids in zip(questions, neighbours, strict=True):
        solved = [reference[row] for row in ids[::-1] if row >= 0]
        if chat is not None and question.templated:
            found.append(_as_turns(question, solved, chat))
            continue
        before = "".join(_before_answer(one) + one.target + SEPARATOR for one in solved)
        contexts = tuple(before + context for context in question.contexts)
        found.append(replace(question, prompt=before + question.prompt, contexts=contexts))
    return found


def _as_turns(question: Sample, solved: Sequence[Sample], chat: ChatTemplate) -> Sample:
    turns = tuple(turn for one in solved for turn in (*_asked(one), Message("assistant", one.target)))
    contexts = user_texts(question) if question.contexts else ()
    plain = replace(question, messages=after(turns, question.messages or ()), contexts=contexts)
    return templated(plain, chat)


def _asked(sample: Sample) -> list[Message]:
    """The turns before a templated sample's answer, without a system turn."""
    turns = [one for one in sample.messages or () if one.role != "system"]
    if sample.contexts:
        turns[-1] = Message("user", user_texts(sample)[sample.answer])
    return turns


def _before_answer(sample: Sample) -> str:
    return sample.contexts[sample.answer] if sample.contexts else sample.prompt
