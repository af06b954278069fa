"""What a row asks, in units: passage, question and options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from roma_ds.data.rows import Row
from roma_ds.data.segments import WORD, Text, segment

SHORTEST = 4 * WORD
"""Weight from which on a text can say by itself what is asked."""


@dataclass(eq=False)
class Asked:
    """The parts of a row that can be copied."""

    question: Text
    """The question; the prompt where the row has no other."""
    contexts: tuple[Text, ...]
    """The passage, if any, and what a prompt holds beside question and options."""
    has_passage: bool
    """Whether the first of the contexts is a passage."""
    row: Row

    @property
    def texts(self) -> tuple[Text, ...]:
        """All but the options."""
        return (self.question, *self.contexts)

    @property
    def beside(self) -> tuple[Text, ...]:
        """The contexts that come from a prompt."""
        return self.contexts[self.has_passage :]

    @property
    def wording(self) -> int:
        """Equal for rows that have the same texts."""
        return hash(tuple(text.identity for text in self.texts))

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """Joined units of the options in the order of the row."""
        return tuple(segment(choice).joined for choice in self.row.get("choices") or ())

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The same in an order of their own."""
        return tuple(sorted(self.choices))

    @property
    def answer(self) -> str | None:
        """Joined units of the right option."""
        return self.choices[self.row["answer"]] if self.choices else None


def asked(row: Row) -> Asked:
    """The parts of a checked row."""
    passage, prompt = str(row.get("passage") or ""), row.get("prompt")
    question = segment(str(row.get("question") or prompt))
    contexts = [segment(passage)] if passage.strip() else []
    if "messages" in row:
        said = [turn.content for turn in row["messages"] if turn.role == "user"]
        contexts += [segment(text) for text in said[:-1]]
    if prompt is not None and row.get("question"):
        options = [segment(choice).joined for choice in row.get("choices") or ()]
        contexts += _beside(segment(prompt), question, options)
    return Asked(question, tuple(contexts), bool(passage.strip()), row)


def _beside(prompt: Text, question: Text, options: list[str]) -> list[Text]:
    """The pieces of a prompt around its question and options, without those of a few words."""
    before, _, after = prompt.joined.partition(question.joined)
    for option in options:
        after = f" {after} ".replace(option, " \n ", 1)
    pieces = [segment(piece) for piece in (before, *after.split("\n"))]
    return [piece for piece in pieces if piece.weight >= SHORTEST]
