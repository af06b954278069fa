"""Rows into prompts and answers.

letter:  [passage]          text:  [passage]
         question                  Question: question
         A. first choice           Answer:
         B. second choice
         Answer:

The known tasks have texts of their own for cloze scoring, by `Task.layout`: `question` as text above; `bare`,
the question alone, which a choice goes on; `gap`, the question up to its `_` and a choice, after which the
rest of the question is scored; `letters` as letter above.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from roma_ds.config.sources import AnswerForm
from roma_ds.data.plain_chat import plain_prompt
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample, sample_of
from roma_ds.data.tasks import Layout
from roma_ds.errors import UserError

GAP = "_"


def render(
    row: Row,
    answer_form: AnswerForm,
    task: str,
    split: str,
    before: str = "",
    layout: Layout | None = None,
    directly: bool = False,
) -> Sample:
    """The sample of a checked row.

    A `prompt` row is taken verbatim and its options are named as texts. A conversation is written as lines.
    A row without choices has a text answer whatever `answer_form` says; as `solution` it is the row's worked
    solution where there is one, else the answer, and options are only listed. before: description and solved
    examples, put in front of the prompt.
    directly: answers begin without a space and take none from the prompt, as a chat template wants them.

    layout: of a known task in cloze scoring. The row's texts are then taken as they are, white space too, and
    space at the end of the prompt is counted to the options, both as lm-evaluation-harness does.
    Raises UserError where the layout `gap` finds no gap, and where a row with choices has no solution.
    """
    identity = f"{task}/{split}/{row['id']}"
    question = str(row.get("question") or row.get("prompt", ""))
    choices = tuple(row.get("choices") or ())
    passage = row.get("passage") or ""
    messages = row.get("messages")
    if messages is not None:
        laid = _Laid(plain_prompt(messages), ())
    elif "prompt" in row:
        laid = _Laid(row["prompt"], _spaced(choices))
    elif layout is not None:
        laid = _laid_out(question, choices, layout, passage, identity)
        laid = laid if directly else _spaces_to_options(laid)
    else:
        question, choices = question.strip(), tuple([choice.strip() for choice in choices])
        form: Layout = "letters" if answer_form != "text" and choices else "question"
        laid = _laid_out(question, choices, form, passage.strip(), identity)
    space, options = " ", laid.options
    if directly:
        space, options = "", tuple(option.removeprefix(" ") for option in options)
    target = options[row["answer"]] if choices else f"{space}{row['answer']}"
    final = ""
    if answer_form == "solution":
        options = ()
        if worked := _worked(row, identity):
            target, final = space + worked, target.strip()
    return sample_of(
        id=identity,
        task=task,
        split=split,
        prompt=before + laid.prompt,
        question=question,
        choices=choices,
        answer=row["answer"] if options else -1,
        target=target,
        options=options,
        passage=passage.strip(),
        subject=str(row.get("subject") or row.get("skill") or ""),
        contexts=tuple([before + context for context in laid.contexts]),
        messages=messages,
        tools=row.get("tools", "") if messages is not None else "",
        final=final,
    )


def _worked(row: Row, identity: str) -> str:
    """The worked solution of a row; empty where its answer is one itself."""
    worked = str(row.get("solution") or "").strip()
    if not worked and row.get("choices"):
        raise UserError(
            f"sample {identity}: there is no solution in its row, which has options",
            "name the column with solutions by columns.solution, or learn letters (data.train[].answer)",
        )
    return worked


def solved(row: Row, sample: Sample) -> str:
    """The text of a sample with its answer, or with the worked solution that its row holds."""
    if not sample.options and row.get("solution"):
        return f"{sample.prompt} {solution(row, sample)}"
    return (sample.contexts[sample.answer] if sample.contexts else sample.prompt) + sample.target


def solution(row: Row, sample: Sample) -> str:
    """The worked solution that a row holds, or its answer as the sample has it."""
    worked = None if sample.options else row.get("solution")
    return str(worked).strip() if worked else sample.target


@cache
def letters(count: int) -> tuple[str, ...]:
    """The first `count` option letters as they follow a prompt: " A", " B", ..."""
    return _spaced(string.ascii_uppercase[:count])


class _Laid(NamedTuple):
    """A prompt and what follows it; with contexts, option i follows context i in its place."""

    prompt: str
    options: tuple[str, ...]
    contexts: tuple[str, ...] = ()


def _spaced(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple([f" {text}" for text in texts])


def _laid_out(question: str, choices: tuple[str, ...], layout: Layout, passage: str, identity: str) -> _Laid:
    """Prompt and options, and where these differ in what comes before them, contexts."""
    if layout == "gap" and choices:
        return _filled(question, choices, identity)
    if layout == "letters" and choices:
        prompt, options = _letter_prompt(question.strip(), choices), letters(len(choices))
    else:
        options = _spaced(choices)
        prompt = question if layout == "bare" and choices else f"Question: {question}\nAnswer:"
    return _Laid(f"{passage}\n{prompt}" if passage else prompt, options)


def filled(question: str, choices: Sequence[str]) -> tuple[str, ...]:
    """What stands before the rest of a question with a gap, with each of the choices in it."""
    start = question.partition(GAP)[0]
    return tuple(start + choice for choice in choices)


def _filled(question: str, choices: tuple[str, ...], identity: str) -> _Laid:
    _, gap, rest = question.partition(GAP)
    if not gap:
        raise UserError(
            f"sample {identity}: there is no `{GAP}` in its question, which cloze scoring fills",
            "mend the row, or use eval.scoring=letter",
        )
    return _Laid(question, tuple(f" {rest.strip()}" for _ in choices), filled(question, choices))


def _spaces_to_options(laid: _Laid) -> _Laid:
    """White space at the end of what is read first goes to the text that follows it."""
    if not laid.contexts:
        kept = laid.prompt.rstrip()
        space = laid.prompt[len(kept) :]
        return _Laid(kept, tuple(space + option for option in laid.options))
    contexts = tuple(context.rstrip() for context in laid.contexts)
    spaces = [context[len(kept) :] for context, kept in zip(laid.contexts, contexts, strict=True)]
    options = tuple(space + option for space, option in zip(spaces, laid.options, strict=True))
    return _Laid(laid.prompt, options, contexts)


def _letter_prompt(question: str, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    return "\n".join([question, *lines, "Answer:"])


def preview(samples: Sequence[Sample], count: int) -> str:
    """The first `count` prompts as the model reads them; `<<` and `>>` enclose the answer."""
    parts = [
        f"--- {sample.id}: the answer{_among(sample)} stands between << and >>\n"
        f"{sample.contexts[sample.answer] if sample.contexts else sample.prompt}<<{sample.target}>>"
        for sample in samples[:count]
    ]
    return "\n\n".join(parts)


def _among(sample: Sample) -> str:
    return f", one of {len(sample.options)} options," if sample.options else ""
