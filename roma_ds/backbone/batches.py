"""Padded batches with the positions where routing is read and tokens are predicted.

Shapes: B sequences, L padded tokens, N routing positions a sequence, T predicted tokens in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from roma_ds.backbone.encoding import Encoded

TOKEN_CHOICES = ("last1", "last3", "first1", "first3", "middle1", "middle3")


def routing_positions(prompt_length: int, tokens: str) -> list[int]:
    """Positions in a prompt that `roma.tokens` names; fewer where the prompt is shorter.

    `middle3` is centred on the middle token of the prompt.
    """
    place, count = tokens[:-1], min(int(tokens[-1]), prompt_length)
    start = {"first": 0, "last": prompt_length - count, "middle": (prompt_length - count) // 2}[place]
    return list(range(start, start + count))


@dataclass(frozen=True)
class Batch:
    """B sequences, padded on the right."""

    input_ids: torch.Tensor
    """int64 [B, L]"""
    attention_mask: torch.Tensor
    """int64 [B, L], 1 where a token is, 0 where padding is"""
    routing_positions: torch.Tensor
    """int64 [B, N]"""
    routing_weights: torch.Tensor
    """float32 [B, N], rows sum to 1, 0 where a short prompt has fewer positions"""
    answer_sequence: torch.Tensor
    """int64 [T], which sequence a predicted token belongs to"""
    answer_position: torch.Tensor
    """int64 [T], the position whose logits predict it"""
    answer_ids: torch.Tensor
    """int64 [T]"""
    rows: tuple[int, ...]
    """The sample row of each sequence."""

    @property
    def tokens(self) -> int:
        """Non-pad tokens."""
        return int(self.attention_mask.sum())

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The arguments of `RoutedLM.forward`, on `device`."""
        names = (
            "input_ids",
            "attention_mask",
            "routing_positions",
            "routing_weights",
            "answer_sequence",
            "answer_position",
        )
        return {name: getattr(self, name).to(device) for name in names}


def collate(sequences: Sequence[Encoded], pad_id: int, tokens: str) -> Batch:
    """Pad `sequences` on the right to the longest of them.

    Right padding keeps every real token's position and, under a causal mask, its result: positions are
    gathered by index, never by `[:, -1]`.
    """
    length = max(sequence.length for sequence in sequences)
    count = int(tokens[-1])
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    positions = torch.zeros((len(sequences), count), dtype=torch.long)
    weights = torch.zeros((len(sequences), count), dtype=torch.float32)
    owners, places, ids = [], [], []
    for index, sequence in enumerate(sequences):
        read = (*sequence.prompt, *sequence.continuation[:-1])
        input_ids[index, : len(read)] = torch.tensor(read)
        mask[index, : len(read)] = 1
        chosen = routing_positions(len(sequence.prompt), tokens)
        positions[index, : len(chosen)] = torch.tensor(chosen)
        weights[index, : len(chosen)] = 1.0 / len(chosen)
        for offset, token in enumerate(sequence.continuation):
            owners.append(index)
            places.append(len(sequence.prompt) - 1 + offset)
            ids.append(token)
    return Batch(
        input_ids,
        mask,
        positions,
        weights,
        torch.tensor(owners, dtype=torch.long),
        torch.tensor(places, dtype=torch.long),
        torch.tensor(ids, dtype=torch.long),
        tuple(sequence.row for sequence in sequences),
    )


def in_batches(sequences: Sequence[Encoded], batch_size: int) -> Iterator[list[Encoded]]:
    """Consecutive batches of sequences of similar length, longest first so that memory peaks at once."""
    ordered = sorted(sequences, key=lambda sequence: (-sequence.length, sequence.row))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]
