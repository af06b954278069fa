"""Rows of an instruction and an output, or of a prompt and its completion."""

from __future__ import annotations

from typing import Any

from roma_ds.data.message import Message
from roma_ds.data.shapes.chat import conversation, read_conversation, read_tools
from roma_ds.data.shapes.row import Misfit, Row, is_text, one_key, shown, unpacked_text
from roma_ds.data.shapes.setting import Setting


def read_instruction(row: dict[str, Any], setting: Setting) -> Row:
    """Instruction and input, a blank line between them, as a prompt; with system or history as a chat.

    Raises Misfit.
    """
    instruction = _text(row, "instruction")
    output = _text(row, one_key(row, "output", "response"))
    given = _optional(row, one_key(row, "input", "context"))
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    system, history = _optional(row, "system"), _history(row.get("history"))
    if not system.strip() and not history:
        return {"prompt": prompt, "answer": output}
    turns = [Message("system", system)] if system.strip() else []
    for asked, answered in history:
        turns += [Message("user", asked), Message("assistant", answered)]
    return conversation([*turns, Message("user", prompt), Message("assistant", output)], setting.every_turn)


def read_completion(row: dict[str, Any], setting: Setting) -> Row:
    """A prompt verbatim with its completion, or both as messages. Raises Misfit."""
    key = one_key(row, "completion", "response")
    prompt, completion = _turns(row.get("prompt")), _turns(row.get(key))
    if isinstance(prompt, list) or isinstance(completion, list):
        before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        after = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        columns = setting.columns
        read = read_conversation(
            [*before, *after], setting.every_turn, columns.role, columns.content, row.get("system")
        )
        if len(read["messages"]) < len(before):
            raise Misfit(f"no message of {key} is an answer")
        if tools := read_tools(row.get("tools")):
            read["tools"] = tools
        return read
    prompt, completion = _text(row, "prompt"), _text(row, key)
    # An answer follows after one space.
    answer = completion.removeprefix(" ")
    if system := _optional(row, "system").strip():
        turns = [Message("system", system), Message("user", prompt), Message("assistant", answer)]
        return conversation(turns, setting.every_turn)
    return {"prompt": prompt, "answer": answer}


def _turns(value: Any) -> Any:
    """A list of messages, also out of a text; any other value as it is."""
    found = unpacked_text(value)
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else value


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise Misfit(f"no {key}")
    if not is_text(row[key]):
        raise Misfit(f"{key} must be a text that is not blank, got {shown(row[key])}")
    return str(row[key])


def _optional(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise Misfit(f"{key} must be a text, got {shown(value)}")
    return value or ""


def _history(value: Any) -> list[tuple[str, str]]:
    """Earlier pairs of what was asked and answered. Raises Misfit."""
    found = unpacked_text(value) or []
    pairs = isinstance(found, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(is_text(text) for text in pair)
        for pair in found
    )
    if not pairs:
        raise Misfit(f"history must be a list of pairs of texts, got {shown(value)}")
    return [(pair[0], pair[1]) for pair in found]
