"""One rendered question with its answer: what every later stage works on."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from roma_ds.data.message import Message


@dataclass(frozen=True)
class Sample:
    """A prompt and what may follow it.

    `target` and every entry of `options` follow the prompt directly, and begin with one space unless a chat
    template wrote that. `options` is empty and `answer` is -1 where the answer is free text. With `contexts`,
    option i follows context i in place of the prompt.
    """

    id: str
    """`task/split/id of the row`, unique in a run."""
    task: str
    """Dataset or evaluation task."""
    split: str
    """Split of the dataset."""
    prompt: str
    """What the model reads, ending where the answer begins."""
    question: str
    """The question alone, without options or template."""
    choices: tuple[str, ...]
    """Texts of the options."""
    answer: int
    """Index of the right option, or -1."""
    target: str
    """The right answer as it follows the prompt."""
    options: tuple[str, ...]
    """Candidate answers as they follow the prompt: letters or texts."""
    passage: str = ""
    """Text that the question is about, where there is one."""
    subject: str = ""
    """Subject or skill that the row names, for tables and pictures."""
    contexts: tuple[str, ...] = ()
    """By option, what the model reads before it, where options differ in that (a filled gap) and not in what
    is scored."""
    messages: tuple[Message, ...] | None = None
    """The turns before the answer where the row is a conversation; None where it is not."""
    tools: str = ""
    """JSON text of the tools that the conversation may call; empty where there are none."""
    templated: bool = False
    """Whether a chat template wrote prompt and contexts, special tokens and all, from `messages`."""
    behind_user: int = -1
    """Characters of prompt and contexts behind what the user says last; -1 where that is not known."""
    final: str = ""
    """The answer that `target` ends in, where that is a worked solution and the row gives the answer apart:
    a number, an option's letter, or a text."""


_UNSET = {spec.name: None if spec.default is MISSING else spec.default for spec in fields(Sample)}


def sample_of(**values: Any) -> Sample:
    """The same as `Sample(...)`, several times as quick: a frozen dataclass sets each field by a call.

    values: every field without a default is among them.
    """
    made = object.__new__(Sample)
    vars(made).update(_UNSET)
    vars(made).update(values)
    return made
