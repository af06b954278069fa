"""Conversations: messages with role and content, or turns with from and value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from roma_ds.data.message import KNOWN, Message, said
from roma_ds.data.shapes.row import Misfit, Row, shown, unpacked_text

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "tool": "tool", "function": "tool",
    "observation": "tool", "ipython": "ipython",
}  # fmt: skip
"""Names of speakers, each with what chat templates call it."""
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
_TRAINED = ("train", "weight")
_NOT_EXTRA = {*_ROLE, *_CONTENT, *_TRAINED}


def read_conversation(
    turns: Any, every: bool, role: str | None = None, content: str | None = None, system: Any = None
) -> Row:
    """The row of a conversation, without id: the turns before its last answer, and that answer.

    An answer is an assistant's turn that has a text, makes no call and is not marked as untrained, behind a
    turn of the user. every: earlier ones are answers too. system: text of a system turn that comes with the
    row. Raises Misfit.
    """
    messages = [
        turn if type(turn) is Message else _message(turn, place, role, content)
        for place, turn in enumerate(_listed(turns), start=1)
    ]
    if system is not None and system != "":
        if not isinstance(system, str):
            raise Misfit(f"system must be a text, got {shown(system)}")
        if not messages or messages[0].role != "system":
            messages.insert(0, Message("system", system))
        elif messages[0].content.strip() != system.strip():
            raise Misfit("the key system and the first message are two system texts")
    return conversation(messages, every)


def conversation(messages: Sequence[Message], every: bool) -> Row:
    """The same of messages. Raises Misfit where none is an answer."""
    last = len(messages) - 1
    while last > 0 and not _is_answer(messages[last]):
        last -= 1
    before = messages[:last]
    asked = [message.content for message in before if message.role == "user"]
    if not asked:
        raise Misfit(_why_none(messages))
    row: Row = {"messages": tuple(before), "question": asked[-1], "answer": messages[last].content}
    if every:
        first = next(place for place, message in enumerate(before) if message.role == "user")
        if earlier := tuple(place for place in range(first, last) if _is_answer(messages[place])):
            row["earlier"] = earlier
    return row


def question_of(messages: Sequence[Message]) -> str:
    """What the user says last."""
    for message in reversed(messages):
        if message.role == "user":
            return message.content
    return ""


def read_tools(tools: Any) -> str:
    """The tools of a conversation as JSON text; empty where there are none. Raises Misfit."""
    found = unpacked_text(tools)
    if not found:
        return ""
    if not isinstance(found, list | dict):
        raise Misfit(f"tools must be a list or its JSON text, got {shown(tools)}")
    return json.dumps(found if isinstance(found, list) else [found], ensure_ascii=False, default=str)


def _listed(turns: Any) -> list[Any]:
    found = turns if type(turns) is list else unpacked_text(turns)
    if not isinstance(found, list) or not found:
        raise Misfit(f"a conversation must be a list of messages, got {shown(turns)}")
    return found


def _message(turn: Any, place: int, role: str | None, content: str | None) -> Message:
    if type(turn) is dict and len(turn) == 2 and turn.get("role") in KNOWN:
        text = turn.get("content")
        if type(text) is str:
            return said(turn["role"], text)
    if not isinstance(turn, dict):
        raise Misfit(f"message {place} must be an object with role and content, got {shown(turn)}")
    speaker = next((turn[key] for key in (role, *_ROLE) if key in turn), None)
    if not isinstance(speaker, str) or speaker.lower() not in ROLES:
        known = ", ".join(ROLES)
        raise Misfit(f"message {place} must name who speaks, one of {known}; got {shown(speaker)}")
    given = next((turn[key] for key in (content, *_CONTENT) if turn.get(key) is not None), "")
    text = _text(given, place)
    used = {*_NOT_EXTRA, role, content}
    extra = {key: value for key, value in turn.items() if key not in used and value not in (None, [], {})}
    if speaker.lower() == "function_call":
        extra, text = {**extra, "tool_calls": _calls(text, place)}, ""
    return Message(
        ROLES[speaker.lower()],
        text,
        _trained(turn, place),
        json.dumps(extra, ensure_ascii=False, default=str) if extra else "",
    )


def _text(given: Any, place: int) -> str:
    """The text of a message, whose parts of text are joined."""
    if isinstance(given, str):
        return given
    if isinstance(given, dict) and "type" in given:
        given = [given]
    if not isinstance(given, list):
        raise Misfit(f"message {place}: content must be a text or a list of parts, got {shown(given)}")
    parts: list[str] = []
    for part in given:
        if isinstance(part, str):
            parts.append(part)
        elif (
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and part.get("type", "text") == "text"
        ):
            parts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"a part of type {kind!r}" if isinstance(kind, str) else f"the part {shown(part)}"
            raise Misfit(f"message {place} has {what}: text is read, pictures, sounds and films are not")
    return "".join(parts)


def _calls(text: str, place: int) -> list[dict[str, Any]]:
    calls = unpacked_text(text)
    listed = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) for call in listed):
        raise Misfit(f"message {place}: a function call must be a JSON object, got {shown(text)}")
    return [{"type": "function", "function": call} for call in listed]


def _trained(turn: dict[str, Any], place: int) -> bool:
    flags = [turn[key] for key in _TRAINED if turn.get(key) is not None]
    for flag in flags:
        if flag not in (0, 1):
            raise Misfit(f"message {place}: train and weight are true, false, 1 or 0, got {shown(flag)}")
    return all(flags)


def _is_answer(message: Message) -> bool:
    return message.role == "assistant" and message.train and _says(message)


def _says(message: Message) -> bool:
    return bool(message.content.strip()) and not (message.extra and '"tool_calls"' in message.extra)


def _why_none(messages: Sequence[Message]) -> str:
    theirs = [message for message in messages if message.role == "assistant"]
    if not theirs:
        return "no message of an assistant, which would be the answer"
    if not any(message.role == "user" for message in messages):
        return "no message of a user"
    if not any(message.train for message in theirs):
        return "no message of the assistant is to be trained on"
    if not any(map(_says, theirs)):
        return "no message of the assistant has a text and makes no call"
    return "no message of the assistant with a text, to be trained on, stands behind one of the user"
