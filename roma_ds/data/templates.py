"""Rows into prompts and answers.

letter:  [passage]          text:  [passage]
         question                  Question: question
         A. first choice           Answer:
         B. second choice
         Answer:
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from roma_ds.config.schema import AnswerForm
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample


def render(row: Row, answer_form: AnswerForm, task: str, split: str) -> Sample:
    """The sample of a checked row.

    A `prompt` row is taken verbatim and its options are named as texts. A row without choices has a text
    answer whatever `answer_form` says.
    """
    passage = (row.get("passage") or "").strip()
    if "prompt" in row:
        prompt: str = row["prompt"]
        question: str = row.get("question", prompt)
        choices = tuple(row.get("choices") or ())
        options = tuple(f" {choice}" for choice in choices)
    else:
        question = row["question"].strip()
        choices = tuple(choice.strip() for choice in row.get("choices") or ())
        if choices and answer_form == "letter":
            prompt, options = _letter_prompt(question, choices), letters(len(choices))
        else:
            prompt, options = f"Question: {question}\nAnswer:", tuple(f" {choice}" for choice in choices)
        prompt = f"{passage}\n{prompt}" if passage else prompt
    answer = row["answer"] if choices else -1
    return Sample(
        id=f"{task}/{split}/{row['id']}",
        task=task,
        split=split,
        prompt=prompt,
        question=question,
        choices=choices,
        answer=answer,
        target=options[answer] if choices else f" {row['answer']}",
        options=options,
        passage=passage,
        subject=str(row.get("subject") or row.get("skill") or ""),
    )


def letters(count: int) -> tuple[str, ...]:
    """The first `count` option letters as they follow a prompt: " A", " B", ..."""
    return tuple(f" {letter}" for letter in string.ascii_uppercase[:count])


def _letter_prompt(question: str, choices: Sequence[str]) -> str:
    lines = [
        f"{letter.strip()}. {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True)
    ]
    return "\n".join([question, *lines, "Answer:"])


def preview(samples: Sequence[Sample], count: int) -> str:
    """The first `count` prompts as the model reads them; `<<` and `>>` enclose the answer."""
    parts = [
        f"--- {sample.id}: the answer{_among(sample)} stands between << and >>\n"
        f"{sample.prompt}<<{sample.target}>>"
        for sample in samples[:count]
    ]
    return "\n\n".join(parts)


def _among(sample: Sample) -> str:
    return f", one of {len(sample.options)} options," if sample.options else ""
