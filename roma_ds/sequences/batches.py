"""Packed batches with the positions where routing is read and tokens are predicted.

Shapes: B sequences, T tokens in all, N routing positions a sequence, A predicted tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from roma_ds.sequences.encoding import NOWHERE, Encoded
from roma_ds.sequences.packing import Packing, pack, pack_shared
from roma_ds.sequences.token_tree import tree_of

TOKEN_CHOICES = ("last1", "last3", "first1", "first3", "middle1", "middle3")
"""Those of `roma.tokens` that are counted in the prompt, whatever it says."""
USER = "user1"
MOST_TIMES = 4


def routing_positions(prompt_length: int, tokens: str, user: int = NOWHERE) -> list[int]:
    """Positions in a prompt that `roma.tokens` names; fewer where the prompt is shorter.

    `middle3` is centred on the middle token of the prompt. user: what `user1` names.
    """
    if tokens == USER:
        if not 0 <= user < prompt_length:
            raise ValueError(f"no token {user} in a prompt of {prompt_length} ends what the user says")
        return [user]
    place, count = tokens[:-1], min(int(tokens[-1]), prompt_length)
    start = {"first": 0, "last": prompt_length - count, "middle": (prompt_length - count) // 2}[place]
    return list(range(start, start + count))


@dataclass(frozen=True)
class Batch:
    """B sequences, one after the other, without padding; or what they share only once, T tokens in all."""

    input_ids: torch.Tensor
    """int64 [T]"""
    position_ids: torch.Tensor
    """int64 [T], the token's position in its sequence"""
    packing: Packing
    """Which token belongs where."""
    routing_positions: torch.Tensor
    """int64 [B, N], indices into T"""
    routing_weights: torch.Tensor
    """float32 [B, N], rows sum to 1, 0 where a short prompt has fewer positions"""
    answer_sequence: torch.Tensor
    """int64 [A], which sequence a predicted token belongs to"""
    answer_position: torch.Tensor
    """int64 [A], index into T of the token whose logits predict it"""
    answer_ids: torch.Tensor
    """int64 [A]"""
    rows: tuple[int, ...]
    """The sample row of each sequence."""
    entering: torch.Tensor | None = None
    """[T, width], what enters the first layer of a network that begins there, as `Entering.pack` has it"""
    paths: tuple[torch.Tensor, ...] | None = None
    """By sequence, int64 [length], indices into T; None where T is one sequence after the other."""

    def apart(self, values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        """Values [T, ...] of the tokens as [length, ...] of each sequence, whose lengths are given."""
        if self.paths is None:
            return list(values.split(list(lengths)))
        return [values[path] for path in self.paths]

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        """Values [sum of lengths, ...] of one sequence after the other as [T, ...], each token's first."""
        if self.paths is None:
            return values
        places = torch.cat(self.paths)
        every = torch.arange(len(places))
        first = torch.full((self.tokens,), len(places)).scatter_reduce(0, places, every, "amin")
        return values[first]

    @property
    def asked(self) -> int:
        """Tokens of all sequences, those that are shared counted for each."""
        return self.tokens if self.paths is None else sum(map(len, self.paths))

    @property
    def tokens(self) -> int:
        """Number of tokens run, T."""
        return len(self.input_ids)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """The arguments of `RoutedLM.forward`, on `device`."""
        names = ["input_ids", "position_ids", "packing", "routing_positions", "routing_weights"]
        names += ["answer_position", *(["entering"] if self.entering is not None else [])]
        return {name: getattr(self, name).to(device) for name in names}


def read_ids(sequence: Encoded) -> tuple[int, ...]:
    """The tokens that a network reads of a sequence: the last one behind the prompt is only predicted."""
    return sequence.prompt + sequence.continuation[:-1]


def tokens_run(sequences: Sequence[Encoded], shared: bool) -> int:
    """Tokens of the batch that `collate` makes of the same."""
    read = [read_ids(sequence) for sequence in sequences]
    return len(tree_of(read).ids) if shared and read else sum(map(len, read))


def collate(sequences: Sequence[Encoded], tokens: str, shared: bool = False) -> Batch:
    """Pack `sequences`; `tokens` names the prompt positions whose routing is read, as `roma.tokens`.

    Positions are indices, never `[:, -1]`, and of the prompt, never of the answer. shared: what sequences
    begin with in common is there once.
    """
    read = [read_ids(sequence) for sequence in sequences]
    tree = tree_of(read) if shared and len(read) > 1 else None
    if tree is None or not tree.is_shared:
        tree, paths = None, list(torch.arange(sum(map(len, read))).split([len(ids) for ids in read]))
    else:
        paths = [tree.path(leaf) for leaf in tree.leaves]
    count = int(tokens[-1])
    positions = torch.zeros((len(sequences), count), dtype=torch.long)
    weights = torch.zeros((len(sequences), count), dtype=torch.float32)
    owners: list[int] = []
    answers: list[int] = []
    places = [torch.zeros(0, dtype=torch.long)]
    for index, (sequence, path) in enumerate(zip(sequences, paths, strict=True)):
        chosen = path[routing_positions(len(sequence.prompt), tokens, sequence.user)]
        positions[index] = chosen[0]
        positions[index, : len(chosen)] = chosen
        weights[index, : len(chosen)] = 1.0 / len(chosen)
        predicted = len(sequence.continuation)
        owners += [index] * predicted
        # The last token of a prompt predicts the first one behind it.
        places.append(path[len(sequence.prompt) - 1 :][:predicted])
        answers += sequence.continuation
    answer_position = torch.cat(places)
    needed = torch.cat([positions.flatten(), answer_position])
    lengths = [len(ids) for ids in read]
    return Batch(
        input_ids=torch.tensor(tree.ids if tree else list(chain(*read)), dtype=torch.long),
        position_ids=tree.positions() if tree else torch.cat([torch.arange(length) for length in lengths]),
        packing=pack_shared(tree, needed) if tree else pack(lengths, needed),
        routing_positions=positions,
        routing_weights=weights,
        answer_sequence=torch.tensor(owners, dtype=torch.long),
        answer_position=answer_position,
        answer_ids=torch.tensor(answers, dtype=torch.long),
        rows=tuple(sequence.row for sequence in sequences),
        paths=tuple(paths) if tree else None,
    )


def in_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Numbers of sequences in batches of similar length, longest first so that memory peaks at once.

    lengths: tokens by number. A batch holds at most as many tokens as `batch_size` of the longest sequences,
    so batches of short ones hold more sequences, up to MOST_TIMES as many.
    """
    ordered = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    budget = batch_size * lengths[ordered[0]] if ordered else 0
    batches: list[list[int]] = []
    room = 0
    for number in ordered:
        if not batches or lengths[number] > room or len(batches[-1]) >= MOST_TIMES * batch_size:
            batches.append([])
            room = budget
        batches[-1].append(number)
        room -= lengths[number]
    return batches
