"""Batches of prompts that are gone on with, cut along the tree of their token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roma_ds.sequences.batches import MOST_TIMES
from roma_ds.sequences.encoding import Encoded
from roma_ds.sequences.shared_batches import Kin, kins_of


@dataclass(frozen=True)
class Room:
    """What a batch of prompts may have at most; one prompt alone may have more."""

    run: int
    """Distinct tokens of the prompts."""
    kept: int
    """Tokens whose keys and values are kept, the new ones among them."""
    answers: int

    @classmethod
    def of_longest(cls, prompts: Sequence[Sequence[int]], new: int, batch_size: int) -> Room:
        """That of `batch_size` of the longest prompts, each with `new` tokens more."""
        longest = max(map(len, prompts), default=0)
        return cls(batch_size * longest, batch_size * (longest + new), MOST_TIMES * batch_size)


def in_prompt_batches(prompts: Sequence[tuple[int, ...]], new: int, room: Room) -> list[list[int]]:
    """Numbers of prompts in batches, those that share much together, the batch with the most tokens first.

    new: tokens that each of them may get.
    """
    kins = kins_of([Encoded(number, prompt, ()) for number, prompt in enumerate(prompts)])
    lengths = [len(prompt) for prompt in prompts]
    batches: list[_Filling] = []
    for kin in sorted(kins, key=lambda one: (-max(lengths[number] for number in one.numbers), one.numbers)):
        alone = _alone(kin, lengths)
        for place, number in enumerate(kin.numbers):
            if not batches or not batches[-1].takes(kin.added[place], alone[place], new, room):
                batches.append(_Filling())
            # What begins a batch finds nothing there that it shares.
            added = kin.added[place] if batches[-1].numbers else lengths[number]
            batches[-1].add(number, added, alone[place])
    batches.sort(key=lambda batch: -batch.tokens)
    return [batch.numbers for batch in batches]


def _alone(kin: Kin, lengths: Sequence[int]) -> list[int]:
    """By place among related prompts, the tokens that neither of its neighbours shares."""
    before = [lengths[number] - added for number, added in zip(kin.numbers, kin.added, strict=True)]
    after = [*before[1:], 0]
    return [
        lengths[number] - max(pair)
        for number, pair in zip(kin.numbers, zip(before, after, strict=True), strict=True)
    ]


@dataclass
class _Filling:
    """A batch that is being filled."""

    tokens: int = 0
    alone: int = 0
    """Of the tokens, those that one prompt has for itself."""
    widest: int = 0
    """Most of them that a prompt has; those of the others are padded to it."""

    def __post_init__(self) -> None:
        self.numbers: list[int] = []

    def takes(self, added: int, alone: int, new: int, room: Room) -> bool:
        """Whether there is room for one more prompt."""
        answers, tokens = len(self.numbers) + 1, self.tokens + added
        shared = tokens - self.alone - alone
        kept = shared + answers * (max(self.widest, alone) + new)
        return tokens <= room.run and kept <= room.kept and answers <= room.answers

    def add(self, number: int, added: int, alone: int) -> None:
        self.numbers.append(number)
        self.tokens += added
        self.alone += alone
        self.widest = max(self.widest, alone)
