"""In-context learning: the nearest successful neighbours as solved examples before each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roma_ds.data.sample import Sample

SEPARATOR = "\n\n"


def with_examples(
    questions: Sequence[Sample], reference: Sequence[Sample], neighbours: NDArray[np.int64]
) -> list[Sample]:
    """The questions with solved examples before their prompts and contexts, the most similar one last.

    neighbours: int64 [questions, k], rows of `reference`, nearest first, -1 where there are fewer.
    """
    found = []
    for question, ids in zip(questions, neighbours, strict=True):
        solved = [reference[row] for row in ids[::-1] if row >= 0]
        before = "".join(_before_answer(one) + one.target + SEPARATOR for one in solved)
        contexts = tuple(before + context for context in question.contexts)
        found.append(replace(question, prompt=before + question.prompt, contexts=contexts))
    return found


def _before_answer(sample: Sample) -> str:
    return sample.contexts[sample.answer] if sample.contexts else sample.prompt
