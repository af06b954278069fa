"""Where a model thinks, between tags, and where it answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TAGS = re.compile(
    r"(?P<open><(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)\s*>"
    r"|\[THINK\]|<\|begin_of_thought\|>|◁think▷|<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?"
    r"|\A\s*analysis(?-i:(?=[A-Z])))"
    r"|</(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)\s*>"
    r"|\[/THINK\]|<\|end_of_thought\|>|◁/think▷|<\|channel\|>final(?:<\|message\|>)?|assistantfinal",
    re.IGNORECASE,
)


def answered(text: str, thinking: bool = False) -> list[tuple[int, int]]:
    """(start, end) of the parts of `text` outside its thinking, the last one up to the end of the text.

    thinking: whether the text goes on from an opening tag. A closing tag without an opening one ends thinking
    that began before the text. Thinking that does not end leaves nothing behind it.
    """
    parts: list[tuple[int, int]] = []
    inside, start = thinking, 0
    for tag in _TAGS.finditer(text):
        if tag["open"]:
            if not inside:
                parts.append((start, tag.start()))
            inside = True
        else:
            if not inside:
                parts = []
            inside, start = False, tag.end()
    if not inside:
        parts.append((start, len(text)))
    return parts


def is_thinking(prompt: str) -> bool:
    """Whether a prompt ends with an opening tag, so that what is written behind it is thought."""
    last = list(_TAGS.finditer(prompt))[-1:]
    return any(tag["open"] and tag.end() == len(prompt.rstrip()) for tag in last)


def stop_place(text: str, stop: Sequence[str], thinking: bool = False) -> int | None:
    """Where the first stop sequence of the answer begins.

    Those inside thinking, and those before the answer's first character that is not blank, do not count.
    """
    for start, end in answered(text, thinking):
        begun = start + len(text[start:end]) - len(text[start:end].lstrip())
        places = [place for one in stop if (place := text.find(one, begun, end)) != -1]
        if places and begun < end:
            return min(places)
    return None
