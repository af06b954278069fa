"""Samples as token ids, with the prompt kept whole or cut in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.data.sample import Sample
from roma_ds.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One sequence: a prompt and what follows it. `row` is the sample's row in its file."""

    row: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens that the network reads: the last continuation token is only predicted."""
        return len(self.prompt) + max(0, len(self.continuation) - 1)


@dataclass(frozen=True)
class Prompt:
    """A sample's token ids: prompt, target and options, all without padding."""

    row: int
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int
    """Number of the true option, -1 for free text."""
    truncated: bool

    @property
    def single_token_options(self) -> bool:
        """Every option is one token, so one forward pass over the prompt scores them all."""
        return bool(self.options) and all(len(option) == 1 for option in self.options)


def cut_middle(tokens: Sequence[int], limit: int) -> tuple[tuple[int, ...], bool]:
    """`tokens` shortened to `limit` by dropping the middle, and whether anything was dropped.

    Both ends carry what matters: the instruction at the start, the question and "Answer:" at the end.
    """
    if len(tokens) <= limit:
        return tuple(tokens), False
    head = limit // 4
    return tuple(tokens[:head]) + tuple(tokens[len(tokens) - (limit - head) :]), True


def _continuation(tokenizer: Any, prompt_text: str, prompt: list[int], text: str) -> tuple[int, ...]:
    joined = tokenizer(prompt_text + text)["input_ids"]
    # Tokenizers that end a sequence with a special token would otherwise hide the boundary.
    if joined[: len(prompt)] == prompt:
        return tuple(joined[len(prompt) :])
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode(samples: Sequence[Sample], tokenizer: Any, max_tokens: int) -> list[Prompt]:
    """Token ids of all samples; prompts longer than `max_tokens` lose their middle.

    Raises UserError naming the sample when an answer tokenises to nothing.
    """
    encoded = []
    for row, sample in enumerate(samples):
        prompt = list(tokenizer(sample.prompt)["input_ids"])
        target = _continuation(tokenizer, sample.prompt, prompt, sample.target)
        options = tuple(_continuation(tokenizer, sample.prompt, prompt, text) for text in sample.options)
        if not target or not prompt or any(not option for option in options):
            raise UserError(
                f"sample {sample.id}: its prompt or an answer has no tokens for this tokenizer",
                "check the row, or drop it",
            )
        kept, truncated = cut_middle(prompt, max_tokens)
        encoded.append(Prompt(row, kept, target, options, sample.answer, truncated))
    return encoded
