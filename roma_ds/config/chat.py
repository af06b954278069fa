"""Keys of `data.chat`: how a tokenizer's chat template is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from roma_ds.config.constraints import Text

OURS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "strftime_now",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
)
"""Arguments of `apply_chat_template` that are not the user's to give."""


@dataclass(frozen=True)
class ChatConfig:
    """How prompts are written by a chat template; for `data.template: chat` and `auto`."""

    system: Text | None = None
    """Text of a system turn before every prompt, where the row has none of its own; null has none."""
    template: Text | None = None
    """A named template of the tokenizer, or a file with a Jinja template; null is the tokenizer's own."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """What the template is given by name, such as {enable_thinking: false}."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what the fields contradict together."""
        if taken := sorted(set(self.kwargs) & set(OURS)):
            yield "kwargs", f"{', '.join(taken)} cannot be given here: a run decides that itself"
