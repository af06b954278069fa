"""Samples as turns of a chat, written by its template.

The user's turn is the plain prompt to the letter, `Answer:` and all, as lm-evaluation-harness has it under
`--apply_chat_template`; a task's description is part of the system turn and its solved examples are turns of
their own, as under `--fewshot_as_multiturn`. Nothing stands between the generation prompt and an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from roma_ds.data.chat.template import NOWHERE, ChatTemplate
from roma_ds.data.message import Message
from roma_ds.data.sample import Sample
from roma_ds.data.templates import filled
from roma_ds.errors import UserError


def turn_of(sample: Sample, answer: str) -> tuple[Message, Message]:
    """A sample that is not templated as a solved example: what the user asks, and `answer`."""
    asked = sample.contexts[sample.answer] if sample.contexts else sample.prompt
    return Message("user", asked), Message("assistant", answer)


def user_texts(sample: Sample) -> tuple[str, ...]:
    """What a templated sample's user says last: one text, or one for each of its contexts."""
    if sample.contexts:
        return filled(sample.question, sample.choices)
    said = [message.content for message in sample.messages or () if message.role == "user"]
    return tuple(said[-1:])


def after(before: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with the turns `before` put behind their system turn."""
    system = [message for message in messages[:1] if message.role == "system"]
    return (*system, *before, *messages[len(system) :])


def templated(sample: Sample, chat: ChatTemplate, before: Sequence[Message] = ()) -> Sample:
    """The sample with prompt and contexts as `chat` writes them, and all turns that the model reads.

    sample: with answers that begin without a space. before: turns that stand before it, such as solved
    examples; a system turn among them is joined to that of the config. A conversation's own system turn takes
    the place of both. Raises UserError naming the sample where the template refuses its turns.
    """
    own = sample.messages if sample.messages is not None else (Message("user", sample.prompt),)
    system = [chat.chat.system or "", *(one.content for one in before if one.role == "system")]
    turns = after([one for one in before if one.role != "system"], own)
    if turns[0].role != "system" and (text := _joined(system)) and chat.takes_system:
        turns = (Message("system", text), *turns)
    try:
        every = [turns, *((*turns[:-1], Message("user", text)) for text in sample.contexts)]
        texts = [chat.render(one, sample.tools) for one in every]
        behind = {chat.behind_user(one, sample.tools, text) for one, text in zip(every, texts, strict=True)}
    except UserError as error:
        raise UserError(f"sample {sample.id}: {error.message}", error.fix) from error
    return replace(
        sample,
        prompt=texts[0],
        contexts=tuple(texts[1:]),
        messages=turns,
        templated=True,
        behind_user=behind.pop() if len(behind) == 1 else NOWHERE,
    )


def _joined(texts: Sequence[str]) -> str:
    """A blank line between texts, unless one of them brings white space of its own."""
    whole = ""
    for text in texts:
        apart = bool(whole and text) and not (whole[-1].isspace() or text[0].isspace())
        whole += ("\n\n" if apart else "") + text
    return whole
