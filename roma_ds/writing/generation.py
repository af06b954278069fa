"""Answers that a model writes: greedy decoding, or drawn tokens, in batches over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roma_ds.comm import agreement
from roma_ds.prefix.feed import FILLER
from roma_ds.progress import Progress
from roma_ds.sequences.batches import in_batches
from roma_ds.sequences.prompt_batches import Room, in_prompt_batches
from roma_ds.writing.decoding import Decoder, Leaving, Step
from roma_ds.writing.kept import KeptAnswers, Saver, Written
from roma_ds.writing.sampling import Choice
from roma_ds.writing.thinking import is_thinking, stop_place

__all__ = ["Asked", "Writer", "Written"]

LEAVING = 1 / 8
"""Share of a batch's answers that have ended, from which on they leave it: keys of the others are moved."""


@dataclass(frozen=True)
class Asked:
    """A prompt to go on."""

    prompt: tuple[int, ...]
    stop: tuple[str, ...]
    """Texts at which the answer ends."""
    anywhere: bool = False
    """Whether they end it anywhere. By default not while the model thinks nor before it says anything."""
    draw: str = ""
    """What its random numbers follow from where tokens are drawn, see `sampling.draw_of`."""


class Writer:
    """Decoding of the most likely tokens, or of drawn ones."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Any,
        max_new_tokens: int,
        ends: Collection[int] = (),
        temperature: float = 0.0,
    ) -> None:
        """ends: tokens that end an answer beside those of model and tokenizer; temperature: as `Choice`."""
        self.model, self.tokenizer, self.limit = model, tokenizer, max_new_tokens
        self.temperature = temperature
        own = getattr(model.generation_config, "eos_token_id", None)
        own_ends = own if isinstance(own, list) else [own]
        self._ends = {token for token in (*own_ends, tokenizer.eos_token_id) if token is not None}
        self._ends.update(ends)

    def write(
        self, asked: Sequence[Asked], batch_size: int, title: str, kept: KeptAnswers | None = None
    ) -> list[Written] | None:
        """One answer a prompt, in their order; complete on rank 0, None elsewhere. A collective.

        kept: where answers are saved, and those of a killed writing of the same prompts are taken from.
        """
        world = self.model.world
        batches = self._batches([one.prompt for one in asked], batch_size)
        before: dict[int, Written] = {}
        if kept is not None:
            with agreement(world):
                before = kept.read() if world.is_first else {}
            # The same batches as without an interruption: what lies in one decides the last bits.
            pending = [batch for batch in batches if not before.keys() >= set(batch)]
            batches = world.from_first(pending)
        mine = [batches[index] for index in world.share(len(batches))]
        found: dict[int, Written] = {}
        with (
            Progress(sum(map(len, mine)), title, enabled=world.is_first) as progress,
            Saver(kept, world.rank) as saver,
        ):
            for turn in range(-(-len(batches) // world.size)):
                numbers = mine[turn] if turn < len(mine) else []
                if not (numbers or self.model.partitioned):
                    break
                written = self._batch(numbers, [asked[number] for number in numbers])
                answers = dict(zip(numbers, written, strict=True))
                found.update(answers)
                saver.take(answers)
                progress.advance(len(numbers))
        gathered = world.gather_to_first(found)
        if gathered is None:
            return None
        everything = before | {number: one for part in gathered for number, one in part.items()}
        return [everything[number] for number in range(len(asked))]

    def _batches(self, prompts: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
        """Numbers of prompts in batches, as far as the model can have them in one."""
        if self.model.batching == "shared":
            return in_prompt_batches(prompts, self.limit, Room.of_longest(prompts, self.limit, batch_size))
        lengths = [len(prompt) for prompt in prompts]
        if self.model.batching == "alone":
            return [[number] for batch in in_batches(lengths, 1) for number in batch]
        if self.model.batching == "padded":
            return in_batches(lengths, batch_size)
        groups: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            groups.setdefault(length, []).append(number)
        return [
            group[start : start + batch_size]
            for _, group in sorted(groups.items(), reverse=True)
            for start in range(0, len(group), batch_size)
        ]

    def _batch(self, numbers: Sequence[int], asked: Sequence[Asked]) -> list[Written]:
        """One batch; without any prompt, as many forward passes as the other ranks need."""
        step = self.model.decoding(numbers, [one.prompt for one in asked] or [FILLER.prompt])
        choose = Choice(self.temperature, [one.draw for one in asked] or [""])
        thinking = [is_thinking(self._text(one.prompt)) for one in asked]

        def over(row: int, tokens: Sequence[int]) -> bool:
            return self._is_over(tokens, asked[row], thinking[row])

        new = new_tokens(step, len(asked), self.limit, choose, over, self._anyone)
        return [self._written(*one) for one in zip(new, asked, thinking, strict=True)]

    def _anyone(self, busy: bool) -> bool:
        """Whether another forward pass is needed. Under ZeRO-3 every pass is a collective of all ranks."""
        if not self.model.partitioned:
            return busy
        return bool(self.model.world.reduce(torch.tensor([float(busy)]), "max").item())

    def _is_over(self, tokens: Sequence[int], asked: Asked, thinking: bool) -> bool:
        if tokens[-1] in self._ends:
            return True
        # Every token but the odd piece of a character is at least one character of the text.
        tail = self._text(tokens[-max((len(text) for text in asked.stop), default=0) - 8 :])
        if not any(text in tail for text in asked.stop):
            return False
        return _stop(self._text(tokens), asked, thinking) is not None

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _written(self, tokens: Sequence[int], asked: Asked, thinking: bool) -> Written:
        text = self._text(tokens)
        place = _stop(text, asked, thinking)
        said = text if place is None else text[:place]
        stopped = place is not None and bool(said.strip())
        return Written(said, len(tokens), stopped or (bool(tokens) and tokens[-1] in self._ends))


def new_tokens(
    step: Step,
    count: int,
    limit: int,
    choose: Callable[[torch.Tensor, Sequence[int]], torch.Tensor],
    over: Callable[[int, Sequence[int]], bool],
    anyone: Callable[[bool], bool] = bool,
) -> list[list[int]]:
    """The tokens of each of `count` answers of a batch, at most `limit`; without any, another is run.

    choose: int64 [B] from logits [B, V] of answers by number; over: whether an answer with such tokens has
    ended; anyone: whether there is another pass, told whether an answer here needs one.
    """
    new: list[list[int]] = [[] for _ in range(count)]
    going = set(range(count))
    rows = list(range(max(1, count)))
    chosen: torch.Tensor | None = None
    for _ in range(limit):
        chosen = choose(step(chosen), rows)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row in going:
                new[row].append(token)
                if over(row, new[row]):
                    going.discard(row)
        if not anyone(bool(going)):
            break
        if len(going) <= (1 - LEAVING) * len(rows) and len(rows) > 1 and isinstance(step, Leaving):
            # Where other ranks need further passes one answer is run with them, though all have ended.
            staying = [place for place, row in enumerate(rows) if row in going] or [0]
            step.stay(staying)
            rows, chosen = [rows[place] for place in staying], chosen[staying]
    return new


def _stop(text: str, asked: Asked, thinking: bool) -> int | None:
    if not asked.anywhere:
        return stop_place(text, asked.stop, thinking)
    return min((place for one in asked.stop if (place := text.find(one)) != -1), default=None)
