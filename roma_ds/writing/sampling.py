"""Which token comes next: the most likely one, or one drawn by random numbers of the answer's own.

Shapes: B answers of a batch, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch


class Choice:
    """Picks the next token of every answer in a batch.

    A drawn token depends on its own answer's probabilities and random numbers alone, whatever else is in the
    batch: the first token, in the order of ids, at which the summed probabilities exceed a number drawn
    uniformly below their sum.
    """

    def __init__(self, temperature: float, draws: Sequence[str]) -> None:
        """draws: by answer what its random numbers follow from; temperature: 0 takes the likeliest token."""
        self._temperature = temperature
        self._numbers = [random.Random(draw) for draw in draws]

    def __call__(self, logits: torch.Tensor, answers: Sequence[int] | None = None) -> torch.Tensor:
        """int64 [B] on the CPU, from logits float32 [B, V] of these answers, of all where none are named."""
        if not self._temperature:
            return logits.argmax(dim=-1).cpu()
        likely = torch.softmax(logits.double() / self._temperature, dim=-1).cpu()
        sums = likely.cumsum(dim=-1)
        own = self._numbers if answers is None else [self._numbers[answer] for answer in answers]
        drawn = torch.tensor([[numbers.random()] for numbers in own], dtype=torch.float64)
        places = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)[:, 0]
        return places.clamp(max=logits.shape[1] - 1)


def draw_of(seed: int, sample: str, number: int) -> str:
    """What the random numbers of a sample's answer follow from: nothing of its batch or rank."""
    return f"{seed}/{number}/{sample}"
