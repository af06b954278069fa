"""Log-likelihoods for the harness by packed trees: no padding, and no token run twice in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from roma_ds.errors import UserError
from roma_ds.families import detect
from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Encoded
from roma_ds.sequences.shared_batches import in_shared_batches
from roma_ds.sequences.token_scores import token_scores


class PackedScoring:
    """A network that has the weights of another one in memory, which keeps its own ways of running."""

    def __init__(self, network: Any) -> None:
        """network: of transformers, whole, on one device; its weights are frozen from now on.

        Raises UserError where it has no routers that are found, or mixes tokens otherwise than by attention.
        """
        # Experts and norms that could be trained are run in the slower way that keeps what gradients need.
        network.requires_grad_(False)
        weights = [*network.parameters(), *network.buffers()]
        own = deepcopy(network, {id(tensor): tensor for tensor in weights})
        layout = detect(own)
        if not layout.family.shares_tokens:
            raise UserError(
                f"layers of a {layout.family.name} model mix tokens otherwise than by attention",
                "set engine=hf",
            )
        self.routed = RoutedLM(own, layout, ())
        """The packed network."""
        self.device: torch.device = network.device

    def loglikelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> list[tuple[float, bool]]:
        """Of each (context, continuation) in token ids the log-likelihood in nats, and whether it is greedy.

        A batch holds at most the tokens of `batch_size` of the longest pairs. advance: told how many are
        done.
        """
        sequences = [
            Encoded(row, tuple(context), tuple(continuation))
            for row, (context, continuation) in enumerate(pairs)
        ]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(sequences)
        for numbers in in_shared_batches(sequences, batch_size):
            batch = collate([sequences[number] for number in numbers], "last1", shared=True)
            with torch.no_grad():
                output = self.routed(**batch.inputs(self.device))
            counts = [len(sequences[number].continuation) for number in numbers]
            chosen, rivals = token_scores(output.rows, batch.answer_ids.to(self.device), output.row)
            parts = zip(numbers, chosen.split(counts), rivals.split(counts), strict=True)
            for number, own, other in parts:
                found[number] = float(own.sum()), bool((own >= other).all())
            advance(len(numbers))
        return found
