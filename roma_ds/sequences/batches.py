"""Packed batches with the positions where routing is read and tokens are predicted.

Shapes: B sequences, T tokens in all, N routing positions a sequence, A predicted tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roma_ds.sequences.encoding import NOWHERE, Encoded
from roma_ds.sequences.packing import Packing, pack

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
    """B sequences, one after the other, without padding."""

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

    @property
    def tokens(self) -> int:
        """Number of tokens read, T."""
        return len(self.input_ids)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """The arguments of `RoutedLM.forward`, on `device`."""
        names = ["input_ids", "position_ids", "packing", "routing_positions", "routing_weights"]
        names += ["answer_position", *(["entering"] if self.entering is not None else [])]
        return {name: getattr(self, name).to(device) for name in names}


def collate(sequences: Sequence[Encoded], tokens: str) -> Batch:
    """Pack `sequences`; `tokens` names the prompt positions whose routing is read, as `roma.tokens`.

    Positions are indices, never `[:, -1]`, and of the prompt, never of the answer.
    """
    lengths = [sequence.length for sequence in sequences]
    count = int(tokens[-1])
    ids: list[int] = []
    positions = torch.zeros((len(sequences), count), dtype=torch.long)
    weights = torch.zeros((len(sequences), count), dtype=torch.float32)
    owners, places, answers = [], [], []
    for index, sequence in enumerate(sequences):
        start = len(ids)
        ids.extend((*sequence.prompt, *sequence.continuation[:-1]))
        chosen = [start + place for place in routing_positions(len(sequence.prompt), tokens, sequence.user)]
        positions[index] = chosen[0]
        positions[index, : len(chosen)] = torch.tensor(chosen)
        weights[index, : len(chosen)] = 1.0 / len(chosen)
        for offset, token in enumerate(sequence.continuation):
            owners.append(index)
            places.append(start + len(sequence.prompt) - 1 + offset)
            answers.append(token)
    answer_position = torch.tensor(places, dtype=torch.long)
    return Batch(
        input_ids=torch.tensor(ids, dtype=torch.long),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        packing=pack(lengths, torch.cat([positions.flatten(), answer_position])),
        routing_positions=positions,
        routing_weights=weights,
        answer_sequence=torch.tensor(owners, dtype=torch.long),
        answer_position=answer_position,
        answer_ids=torch.tensor(answers, dtype=torch.long),
        rows=tuple(sequence.row for sequence in sequences),
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
