"""Samples as token ids, with the prompt kept whole or cut in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roma_ds.data.sample import Sample
from roma_ds.errors import UserError

NOWHERE = -1
"""Where what the user says last does not end at a token that is known."""


@dataclass(frozen=True)
class Encoded:
    """One sequence: a prompt and what follows it. `row` is the sample's row in its file."""

    row: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    user: int = NOWHERE
    """Place in the prompt of the last token of what the user says."""

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
    contexts: tuple[tuple[int, ...], ...] = ()
    """By option, what is read before it, where that differs; `prompt` is then the first of them."""
    users: tuple[int, ...] = (NOWHERE,)
    """Place of the last token of what the user says, in the prompt or in each of the contexts; in plain text
    the last one of all."""

    @property
    def single_token_options(self) -> bool:
        """Every option is one token after one prompt, so one forward pass scores them all."""
        single = bool(self.options) and all(len(option) == 1 for option in self.options)
        return single and not self.contexts

    def before(self, option: int) -> tuple[int, ...]:
        """What is read before the option of that number."""
        return self.contexts[option] if self.contexts else self.prompt

    def user_before(self, option: int) -> int:
        """Where in that the user's last token is, NOWHERE where that is not known."""
        return self.users[option] if self.contexts else self.users[0]


def cut_middle(tokens: Sequence[int], limit: int) -> tuple[tuple[int, ...], bool]:
    """`tokens` shortened to `limit` by dropping the middle, and whether anything was dropped.

    Both ends carry what matters: the instruction at the start, the question and "Answer:" at the end.
    """
    if len(tokens) <= limit:
        return tuple(tokens), False
    head = limit // 4
    return tuple(tokens[:head]) + tuple(tokens[len(tokens) - (limit - head) :]), True


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts around a text by itself."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, text: str) -> SpecialTokens:
        """As seen on `text`."""
        whole, own = list(tokenizer(text)["input_ids"]), _plain(tokenizer, text)
        for start in range(len(whole) - len(own) + 1):
            if own and whole[start : start + len(own)] == own:
                return cls(tuple(whole[:start]), tuple(whole[start + len(own) :]))
        first = getattr(tokenizer, "bos_token_id", None)
        return cls((first,) if first is not None and whole[:1] == [first] else (), ())

    def before_prompt(self, prompt: Sequence[int]) -> list[int]:
        """The prompt with the special tokens before it, once where it begins with them itself."""
        own = tuple(prompt[: len(self.before)]) == self.before
        return list(prompt) if own else [*self.before, *prompt]


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _placed(tokenizer: Any, text: str, end: int) -> tuple[list[int], int]:
    """Token ids of a text, and the number of the token that the character before `end` is in."""
    if not getattr(tokenizer, "is_fast", False):
        ids, before = _plain(tokenizer, text), _plain(tokenizer, text[:end])
        return ids, len(before) - 1 if before and ids[: len(before)] == before else NOWHERE
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), found["offset_mapping"]
    # The pieces of one character all have its place: the last of them has read all of it.
    inside = [place for place, (start, stop) in enumerate(offsets) if start < end <= stop]
    return ids, inside[-1] if inside else NOWHERE


def _kept_place(place: int, length: int, kept: int, limit: int) -> int:
    """Where the token `place` of a prompt of `length` is, of which `cut_middle` to `limit` left `kept`."""
    moved = place - (length - kept)
    head = limit // 4 if kept < length else 0
    return moved if place >= 0 and moved >= head else NOWHERE


def require_user_ends(prompts: Sequence[Prompt], name: Callable[[int], str]) -> None:
    """Raises UserError where a prompt has no token that is known to end what the user says.

    name: of the sample in a row.
    """
    for prompt in prompts:
        if NOWHERE in prompt.users:
            cut = ", or it is cut away" if prompt.truncated else ""
            raise UserError(
                "roma.tokens is user1, but the end of what the user says is not found in the prompt of "
                f"sample {name(prompt.row)}: its template does not write that turn as it is{cut}",
                "set roma.tokens=last1" + (", or raise data.max_tokens" if cut else ""),
            )


def _continuation(tokenizer: Any, prompt_text: str, prompt: list[int], text: str) -> tuple[int, ...]:
    joined = _plain(tokenizer, prompt_text + text)
    # Tokens that merge across the boundary would otherwise hide it.
    return tuple(joined[len(prompt) :] if joined[: len(prompt)] == prompt else _plain(tokenizer, text))


def encode(
    samples: Sequence[Sample],
    tokenizer: Any,
    max_tokens: int,
    context: int | None = None,
    new_tokens: Mapping[str, int] | None = None,
    refuse_long: bool = False,
    vocabulary: int | None = None,
) -> list[Prompt]:
    """Token ids of all samples; prompts longer than `max_tokens` lose their middle.

    context: tokens that the model reads at most: a prompt is also cut where its answer would not fit behind
    it, or as many generated tokens as `new_tokens` has for its task. vocabulary: rows of the embedding.
    Special tokens stand before the prompt, once, and never between prompt and answer; a chat template writes
    its own, and none is added.
    Raises UserError naming the sample when an answer tokenises to nothing or leaves no room for a prompt,
    when a token has no row in the embedding, and with `refuse_long` when a prompt would be cut.
    """
    encoded = []
    special = SpecialTokens.of(tokenizer, next((one.prompt for one in samples if one.prompt), ""))
    for row, sample in enumerate(samples):
        texts = sample.contexts or (sample.prompt,)
        if sample.templated:
            placed = [_placed(tokenizer, text, len(text) - max(0, sample.behind_user)) for text in texts]
            plain = whole = [tokens for tokens, _ in placed]
            ends = [place if sample.behind_user >= 0 else NOWHERE for _, place in placed]
        else:
            plain = [_plain(tokenizer, text) for text in texts]
            whole = [special.before_prompt(tokens) for tokens in plain]
            ends = [len(tokens) - 1 for tokens in whole]
        before = [(texts[turn % len(texts)], plain[turn % len(plain)]) for turn in range(len(sample.options))]
        options = tuple(
            _continuation(tokenizer, *pair, option)
            for pair, option in zip(before, sample.options, strict=True)
        )
        own = before[sample.answer] if options else (texts[0], plain[0])
        target = _continuation(tokenizer, *own, sample.target)
        mute = [text for text, tokens in zip(sample.options, options, strict=True) if not tokens]
        if not all(whole) or not target or mute:
            what = "its prompt" if not all(whole) else f"its option {mute[0]!r}" if mute else "its answer"
            raise UserError(
                f"sample {sample.id}: {what} has no tokens for this tokenizer", "change the row, or drop it"
            )
        highest = max(map(max, (*whole, target, *options)))
        if vocabulary is not None and highest >= vocabulary:
            raise _without_row(sample, highest, tokenizer, vocabulary)
        limit = max_tokens
        if context is not None:
            # The last token of an answer is predicted and never read.
            generated = (new_tokens or {}).get(sample.task, 0)
            limit = min(limit, context - max(generated, *(len(one) - 1 for one in (target, *options))))
        longest = max(map(len, whole))
        if limit < 1 or (refuse_long and longest > limit):
            raise _too_long(sample, longest, limit, context)
        kept = [cut_middle(tokens, limit)[0] for tokens in whole]
        encoded.append(
            Prompt(
                row,
                kept[0],
                target,
                options,
                sample.answer,
                longest > limit,
                tuple(kept) if sample.contexts else (),
                tuple(
                    _kept_place(end, len(tokens), len(left), limit)
                    for end, tokens, left in zip(ends, whole, kept, strict=True)
                ),
            )
        )
    return encoded


def _without_row(sample: Sample, token: int, tokenizer: Any, vocabulary: int) -> UserError:
    return UserError(
        f"sample {sample.id}: its token {token} ({tokenizer.decode([token])!r}) has no row in the model's "
        f"embedding, which has {vocabulary}",
        "put the tokenizer's files that belong to this checkpoint into model.path, or take that text out",
    )


def _too_long(sample: Sample, longest: int, limit: int, context: int | None) -> UserError:
    if limit < 1:
        return UserError(
            f"sample {sample.id}: its answer leaves no room for a prompt in the model's context of {context} "
            "tokens",
            "drop the row, or set a smaller eval.max_new_tokens",
        )
    return UserError(
        f"sample {sample.id}: its prompt has {longest} tokens, {limit} are allowed",
        "set data.long_prompts=cut to drop the middle of long prompts, raise data.max_tokens if the model's "
        "context is longer, or use fewer solved examples (eval.shots; of in_context, roma.neighbours)",
    )
