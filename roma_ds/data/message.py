"""One turn of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

KNOWN = frozenset({"system", "user", "assistant"})
"""Roles of most messages, by the names that chat templates know."""


@dataclass(frozen=True)
class Message:
    """What one speaker says, as a chat template takes it."""

    role: str
    """`system`, `user`, `assistant`, `tool`, or another name that the template knows."""
    content: str
    """The text; empty where there are only tool calls."""
    train: bool = True
    """Whether an assistant turn may be an answer; False where the row says so (`train`, `weight`)."""
    extra: str = ""
    """JSON text of further keys such as `tool_calls` and `name`; empty where there are none."""


def said(role: str, content: str) -> Message:
    """A message of nothing but a text. Twice as quick: a frozen dataclass sets each field by a call."""
    made = object.__new__(Message)
    vars(made).update(role=role, content=content, train=True, extra="")
    return made
