"""Conversations as plain text, and each of their answers with the turns before it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from roma_ds.data.message import Message
from roma_ds.data.shapes.chat import question_of
from roma_ds.data.shapes.row import Row

ADVICE = (
    "conversations; under data.template=plain each turn is a line such as `User: ...`, and the answer "
    "follows `Assistant:`; data.template=chat writes them as the model's own template does"
)
"""Said once of a dataset."""


def plain_prompt(messages: Sequence[Message]) -> str:
    """The turns as lines that begin with who speaks, and who is to speak."""
    lines = [_speaker(turn.role) + (_said(turn) if turn.extra else turn.content) for turn in messages]
    return "\n".join([*lines, "Assistant:"])


def answers_of(row: Row) -> list[Row]:
    """The rows of a conversation's answers, each with the turns before it; a single one is the row itself."""
    if "earlier" not in row:
        return [row]
    messages: tuple[Message, ...] = row["messages"]
    places = [*row["earlier"], len(messages)]
    return [
        {
            **{key: value for key, value in row.items() if key != "earlier"},
            "id": f"{row['id']}/turn{number}",
            "messages": messages[:place],
            "question": question_of(messages[:place]),
            "answer": messages[place].content if place < len(messages) else row["answer"],
        }
        for number, place in enumerate(places, start=1)
    ]


@cache
def _speaker(role: str) -> str:
    return f"{role.capitalize()}: "


def _said(turn: Message) -> str:
    """A turn's text, and behind it what else it holds, such as calls."""
    return f"{turn.content} {turn.extra}".strip()
