"""Decoding step by step: what a writer asks of a network, and the steps of one with a key-value cache.

Shapes: B sequences of a batch, L tokens of the longest so far, n newest tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from roma_ds.comm import World
from roma_ds.families.batching import Batching

Step = Callable[[torch.Tensor | None], torch.Tensor]
"""From the tokens chosen last, int64 [B], None at the start: logits float32 [B, V] of the next ones."""
CachedLogits = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""From the newest tokens int64 [B, n], the mask of all tokens [B, L] and a cache: logits float32 [B, V]."""


@runtime_checkable
class Leaving(Protocol):
    """A `Step` that can go on with some of its answers alone."""

    def __call__(self, chosen: torch.Tensor | None) -> torch.Tensor:
        """As `Step`, of the answers that are left."""

    def stay(self, rows: Sequence[int]) -> None:
        """Keep these answers, by their numbers among those that were left, ascending; at least one."""


class Decoder(Protocol):
    """A network that answers can be written with."""

    world: World
    """The ranks that share the prompts."""
    partitioned: bool
    """Whether every pass is a collective of these ranks."""
    generation_config: Any
    """As transformers has it; its `eos_token_id` ends an answer."""

    @property
    def batching(self) -> Batching | Literal["shared"]:
        """Which prompts may be in one batch; `shared`: any, and what they begin with counts once."""

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """Begin a batch; numbers: of these prompts among those that are written, none where it stands in."""


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [B, L] token ids and mask, 1 where there is a token."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


def right_padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `left_padded`, the padding behind the tokens."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


class CachedSteps:
    """A `Step` of a network that reads each token once."""

    def __init__(self, prompts: Sequence[Sequence[int]], cache: Any, logits: CachedLogits) -> None:
        """cache: transformers', which the network fills."""
        self._ids, self._mask = left_padded(prompts)
        self._cache, self._logits = cache, logits

    def __call__(self, chosen: torch.Tensor | None) -> torch.Tensor:
        """As `Step`."""
        if chosen is not None:
            self._ids = chosen[:, None]
            self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        return self._logits(self._ids, self._mask, self._cache)
