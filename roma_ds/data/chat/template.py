"""A tokenizer's chat template: turns to the text that the model reads, and where the user's turn ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from roma_ds.config.chat import ChatConfig
from roma_ds.config.schema import DataConfig
from roma_ds.data.chat.source import DATE, chosen_templates, dated, has_template
from roma_ds.data.message import Message
from roma_ds.errors import UserError
from roma_ds.storage import fingerprint

NOWHERE = -1
"""Where the end of the user's turn cannot be told."""
_MARK = "ROMAMARK"
_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a template may raise over turns that it does not take."""


@dataclass(frozen=True)
class AnswerPlace:
    """What the template writes around an answer."""

    opening: str | None
    """Between its generation prompt and the answer; None where the prompt is no part of a whole chat."""
    closing: str
    """Behind the answer."""


class ChatTemplate:
    """Writes prompts as `tokenizer.apply_chat_template` does."""

    def __init__(self, tokenizer: Any, chat: ChatConfig, day: date) -> None:
        """day: the date that templates write which ask for today's.

        Raises UserError where there is no such template, or none that writes what a user says, or where it
        takes no system turn and `chat` has one.
        """
        self.tokenizer, self.chat, self.day = tokenizer, chat, day
        self.templates = chosen_templates(tokenizer, chat)
        self._dated = {name: dated(text, day) for name, text in self.templates.items()}
        self._behind_user: str | None = None
        if _MARK not in self.render((Message("user", _MARK),)):
            raise UserError(
                f"the chat template ({self.title}) does not write what the user says as text",
                "give another one by data.chat.template, or set data.template=plain",
            )
        if chat.system is not None and not self.takes_system:
            raise UserError(
                f"data.chat.system is set, but the chat template ({self.title}) takes no system turn",
                "leave data.chat.system out",
            )

    @classmethod
    def chosen(cls, tokenizer: Any, data: DataConfig, day: date) -> ChatTemplate | None:
        """The template that `data` asks for; None where prompts are plain text."""
        if data.template == "plain" or (data.template == "auto" and not has_template(tokenizer, data.chat)):
            return None
        return cls(tokenizer, data.chat, day)

    @property
    def title(self) -> str:
        """Which template it is, in words."""
        return "the tokenizer's" if self.chat.template is None else self.chat.template

    def identity(self) -> dict[str, Any]:
        """All that its texts depend on beside the turns, as JSON."""
        found = {
            "templates": fingerprint.of_json(self.templates),
            "special": fingerprint.of_json(
                {name: str(token) for name, token in sorted(self.tokenizer.special_tokens_map.items())}
            ),
            "system": self.chat.system,
            "kwargs": self.chat.kwargs,
        }
        if any(DATE in text for text in self.templates.values()):
            found["day"] = self.day.isoformat()
        return found

    def render(self, messages: Sequence[Message], tools: str = "", prompt: bool = True) -> str:
        """The text of a chat, with the generation prompt behind it unless `prompt` is False.

        tools: JSON text of a list, or empty. Raises UserError with what the template says where it refuses.
        """
        name = "tool_use" if tools and "tool_use" in self._dated else "default"
        try:
            text: str = self.tokenizer.apply_chat_template(
                [_as_dict(message) for message in messages],
                tools=json.loads(tools) if tools else None,
                chat_template=self._dated[name],
                add_generation_prompt=prompt,
                tokenize=False,
                **self.chat.kwargs,
            )
        except _FAULTS as error:
            raise UserError(
                f"the chat template ({self.title}) refuses the turns "
                f"{', '.join(message.role for message in messages)}: {error}",
                "change the row or data.chat, or set data.template=plain",
            ) from error
        return text

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn."""
        try:
            text = self.render((Message("system", _MARK), Message("user", "a")))
        except UserError:
            return False
        return _MARK in text

    @cached_property
    def answer_place(self) -> AnswerPlace:
        """What stands before and behind an answer to a user's turn."""
        asked = (Message("user", "a"),)
        prompt = self.render(asked)
        whole = self.render((*asked, Message("assistant", _MARK)), prompt=False)
        before, found, closing = whole.partition(_MARK)
        if not found:
            return AnswerPlace(None, "")
        return AnswerPlace(before[len(prompt) :] if before.startswith(prompt) else None, closing)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The token that ends an answer, where it is one that the tokenizer was given for such ends."""
        ids = self.tokenizer(self.answer_place.closing, add_special_tokens=False)["input_ids"]
        return frozenset(ids[:1]) & frozenset(self.tokenizer.added_tokens_decoder)

    def behind_user(self, messages: Sequence[Message], tools: str, rendered: str) -> int:
        """Characters of `rendered` behind what the user says last, NOWHERE where that is not found in it."""
        place = max((turn for turn, one in enumerate(messages) if one.role == "user"), default=NOWHERE)
        said = messages[place].content if place >= 0 else ""
        if not said.strip():
            return NOWHERE
        is_last = place == len(messages) - 1
        # Templates cut white space off either end of a turn, or do not.
        ends = [text + self._behind_user for text in (said, said.strip())] if self._behind_user else []
        if is_last and any(rendered.endswith(end) for end in ends):
            return len(self._behind_user or "")
        # A mark may change what the template does at that end of the turn: then it stands at the other.
        for marked, text in ((said + _MARK, ""), (said.rstrip() + _MARK, ""), (_MARK + said, said.strip())):
            other = replace(messages[place], content=marked)
            before, found, behind = self.render(
                (*messages[:place], other, *messages[place + 1 :]), tools
            ).partition(_MARK)
            start = behind.find(text)
            if found and before + behind == rendered and not behind[:start].strip():
                if is_last and not text:
                    self._behind_user = behind
                return len(behind) - start - len(text)
        return NOWHERE


def described(tokenizer: Any, data: DataConfig, chat: ChatTemplate | None) -> str:
    """One line: how prompts are written, and what an instruct model may want instead."""
    if chat is not None:
        return f"by the chat template ({chat.title})"
    if data.template == "auto":
        unused = "" if data.chat == ChatConfig() else ", and data.chat is not used"
        return f"plain text, since the tokenizer has no chat template{unused}"
    if has_template(tokenizer, data.chat):
        return "plain text; the tokenizer has a chat template, which data.template=auto would use"
    return "plain text"


def _as_dict(message: Message) -> dict[str, Any]:
    extra = json.loads(message.extra) if message.extra else {}
    return {"role": message.role, "content": message.content, **extra}
