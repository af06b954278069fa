"""Batches cut along the tree of token ids, so that sequences that share much lie in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roma_ds.sequences.batches import MOST_TIMES, in_batches, read_ids
from roma_ds.sequences.encoding import Encoded
from roma_ds.sequences.token_tree import LEAST_SHARED, shared_length


@dataclass(frozen=True)
class Kin:
    """Sequences next to each other in the order of their tokens, each of which shares much with the last."""

    numbers: tuple[int, ...]
    added: tuple[int, ...]
    """By sequence, its tokens that the one before it has not; of the first, all."""


def in_shared_batches(sequences: Sequence[Encoded], batch_size: int) -> list[list[int]]:
    """Numbers of sequences in batches, the one with the most tokens first so that memory peaks at once.

    A batch holds at most as many distinct tokens as `batch_size` of the longest sequences have, and half as
    many predicted ones. Where nothing is shared the batches are those of `in_batches`.
    """
    lengths = [sequence.length for sequence in sequences]
    kins = kins_of(sequences)
    if len(kins) == len(sequences):
        return in_batches(lengths, batch_size)
    budget = batch_size * max(lengths)
    batches: list[_Filling] = []
    for kin in sorted(kins, key=lambda one: (-max(lengths[number] for number in one.numbers), one.numbers)):
        whole = sum(kin.added)
        if not batches or batches[-1].kins >= MOST_TIMES * batch_size or whole > budget - batches[-1].tokens:
            batches.append(_Filling())
        batches[-1].kins += 1
        for place, number in enumerate(kin.numbers):
            answers = len(sequences[number].continuation)
            batch = batches[-1]
            # What begins a batch finds nothing there that it shares.
            cost = kin.added[place] if place and batch.numbers else lengths[number]
            if batch.numbers and (batch.tokens + cost > budget or batch.answers + answers > budget // 2):
                batches.append(batch := _Filling(kins=1))
                cost = lengths[number]
            batch.add(number, cost, answers)
    batches.sort(key=lambda batch: -batch.tokens)
    return [batch.numbers for batch in batches]


def kins_of(sequences: Sequence[Encoded]) -> list[Kin]:
    """All sequences, equal ones together, and those that share half of the shorter one or more."""
    read = [read_ids(sequence) for sequence in sequences]
    kins: list[Kin] = []
    numbers: list[int] = []
    shared: list[int] = []
    for number in sorted(range(len(read)), key=lambda number: (read[number], number)):
        common = shared_length(read[numbers[-1]], read[number]) if numbers else 0
        least = min(len(read[numbers[-1]]), len(read[number])) if numbers else 0
        same = bool(numbers) and read[numbers[-1]] == read[number]
        if numbers and not same and common < max(LEAST_SHARED, least / 2):
            kins.append(_kin(numbers, shared, read))
            numbers, shared = [], []
        shared.append(common if numbers else 0)
        numbers.append(number)
    return [*kins, _kin(numbers, shared, read)] if numbers else kins


def _kin(numbers: Sequence[int], shared: Sequence[int], read: Sequence[tuple[int, ...]]) -> Kin:
    added = [len(read[number]) - common for number, common in zip(numbers, shared, strict=True)]
    return Kin(tuple(numbers), tuple(added))


@dataclass
class _Filling:
    """A batch that is being filled."""

    kins: int = 0
    tokens: int = 0
    answers: int = 0

    def __post_init__(self) -> None:
        self.numbers: list[int] = []

    def add(self, number: int, cost: int, answers: int) -> None:
        self.numbers.append(number)
        self.tokens += cost
        self.answers += answers
