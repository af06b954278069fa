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
from dataclasses import replace

from roma_ds.config.sources import AnswerForm
from roma_ds.data.plain_chat import plain_prompt
from roma_ds.data.rows import Row
from roma_ds.data.sample import Sample
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
) -> Sample:
    """The sample of a checked row.

    A `prompt` row is taken verbatim and its options are named as texts. A conversation is written as lines.
    A row without choices has a text answer whatever `answer_form` says. before: description and solved
    examples, put in front of the prompt.

    layout: of a known task in cloze scoring. The row's texts are then taken as they are, white space too, and
    space at the end of the prompt is counted to the options, both as lm-evaluation-harness does.
    Raises UserError where the layout `gap` finds no gap.
    """
    sample = Sample(
        id=f"{task}/{split}/{row['id']}",
        task=task,
        split=split,
        prompt=row.get("prompt", ""),
        question=str(row.get("question") or row.get("prompt", "")),
        choices=tuple(row.get("choices") or ()),
        answer=-1,
        target="",
        options=(),
        passage=(row.get("passage") or "").strip(),
        subject=str(row.get("subject") or row.get("skill") or ""),
    )
    if "messages" in row:
        messages = row["messages"]
        sample = replace(sample, prompt=plain_prompt(messages), messages=messages, tools=row.get("tools", ""))
    elif "prompt" in row:
        sample = replace(sample, options=_spaced(sample.choices))
    elif layout is not None:
        sample = _spaces_to_options(_laid_out(sample, layout, row.get("passage") or ""))
    else:
        sample = replace(
            sample,
            question=sample.question.strip(),
            choices=tuple(choice.strip() for choice in sample.choices),
        )
        letter = answer_form == "letter" and sample.choices
        sample = _laid_out(sample, "letters" if letter else "question", sample.passage)
    return replace(
        sample,
        prompt=before + sample.prompt,
        contexts=tuple(before + context for context in sample.contexts),
        answer=row["answer"] if sample.choices else -1,
        target=sample.options[row["answer"]] if sample.choices else f" {row['answer']}",
    )


def solved(row: Row, sample: Sample) -> str:
    """The text of a sample with its answer, or with the worked solution that its row holds."""
    if not sample.options and row.get("solution"):
        return f"{sample.prompt} {str(row['solution']).strip()}"
    return (sample.contexts[sample.answer] if sample.contexts else sample.prompt) + sample.target


def letters(count: int) -> tuple[str, ...]:
    """The first `count` option letters as they follow a prompt: " A", " B", ..."""
    return _spaced(string.ascii_uppercase[:count])


def _spaced(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {text}" for text in texts)


def _laid_out(sample: Sample, layout: Layout, passage: str) -> Sample:
    """The sample with prompt and options, and where these differ in what comes before them, contexts."""
    question, choices = sample.question, sample.choices
    options = _spaced(choices)
    if layout == "gap" and choices:
        return _filled(sample)
    if layout == "letters" and choices:
        prompt, options = _letter_prompt(question.strip(), choices), letters(len(choices))
    elif layout == "bare" and choices:
        prompt = question
    else:
        prompt = f"Question: {question}\nAnswer:"
    return replace(sample, prompt=f"{passage}\n{prompt}" if passage else prompt, options=options)


def _filled(sample: Sample) -> Sample:
    start, gap, rest = sample.question.partition(GAP)
    if not gap:
        raise UserError(
            f"sample {sample.id}: there is no `{GAP}` in its question, which cloze scoring fills",
            "mend the row, or use eval.scoring=letter",
        )
    contexts = tuple(start + choice for choice in sample.choices)
    options = tuple(f" {rest.strip()}" for _ in sample.choices)
    return replace(sample, prompt=sample.question, options=options, contexts=contexts)


def _spaces_to_options(sample: Sample) -> Sample:
    """White space at the end of what is read first goes to the text that follows it."""
    if not sample.contexts:
        kept = sample.prompt.rstrip()
        space = sample.prompt[len(kept) :]
        return replace(sample, prompt=kept, options=tuple(space + option for option in sample.options))
    kept_contexts = tuple(context.rstrip() for context in sample.contexts)
    spaces = [context[len(kept) :] for context, kept in zip(sample.contexts, kept_contexts, strict=True)]
    options = tuple(space + option for space, option in zip(spaces, sample.options, strict=True))
    return replace(sample, contexts=kept_contexts, options=options)


def _letter_prompt(question: str, choices: Sequence[str]) -> str:
    lines = [
        f"{letter.strip()}. {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True)
    ]
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
