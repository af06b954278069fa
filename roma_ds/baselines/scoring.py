"""Scores of prompts from any network that gives logits at the answers of a batch, on this process alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from roma_ds.prefix.feed import Feed
from roma_ds.progress import Progress
from roma_ds.sequences.batches import Batch, in_batches
from roma_ds.sequences.found import Record
from roma_ds.sequences.request_set import Requests, read_results
from roma_ds.sequences.scores import Scores

Forward = Callable[[Sequence[int], Batch], tuple[torch.Tensor, torch.Tensor]]
"""From numbers of sequences and their batch: logits float32 [A, V], routing weights float32 [B, M, E]."""


def score(requests: Requests, feed: Feed, batch_size: int, forward: Forward, title: str) -> Scores:
    """Score every prompt of `requests`."""
    found: list[Record] = []
    with Progress(len(requests.sequences), title) as progress:
        for numbers in in_batches(requests.lengths, batch_size):
            batch = feed.batch(numbers)
            with torch.no_grad():
                logits, routing = forward(numbers, batch)
            found.extend(read_results(requests, numbers, logits, routing))
            progress.advance(len(numbers))
    return Scores.assemble(requests.prompts, found, tokens_read=sum(requests.lengths))
