"""The first batch of training before anything is collected: a refusal shall not follow on hours of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from roma_ds.backbone.batches import Batch
from roma_ds.backbone.encoding import Prompt
from roma_ds.backbone.feed import Feed
from roma_ds.backbone.frozen import MONITORS
from roma_ds.backbone.request_set import requests_of
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.training.engine import RouterEngine
from roma_ds.training.first_batch import try_longest


@dataclass(frozen=True)
class MadeUpFeed(Feed):
    """Batches with random numbers for the hidden states that are not there yet."""

    hidden: int = 0
    dtype: torch.dtype = torch.float32

    def batch(self, numbers: Sequence[int]) -> Batch:
        """As `Feed.batch`, for a suffix network."""
        batch = super().batch(numbers)
        values = torch.randn(batch.tokens, self.hidden, generator=torch.Generator().manual_seed(0))
        return replace(batch, hidden_states=values.to(self.dtype))


def rehearse(
    world: World,
    run: RunConfig,
    ds: Mapping[str, Any],
    prompts: Sequence[Prompt],
    first: int | None,
    hidden: int,
    say: Callable[[str], None],
) -> None:
    """Make the engine of training, run its first batch, and give both back. A collective.

    first: the layer that cached hidden states will enter, None without a cache; hidden: their width. Raises
    what training would raise: EnvironmentFault on a rank whose memory does not suffice.
    """
    with agreement(world):
        requests = requests_of(prompts)
    feed = Feed(requests.sequences, run.roma.tokens)
    if first is not None:
        dtype = getattr(torch, run.model.dtype)
        feed = MadeUpFeed(feed.sequences, feed.tokens, hidden=hidden, dtype=dtype)
    engine = RouterEngine(world, run, {k: v for k, v in ds.items() if k not in MONITORS}, first)
    lengths = requests.lengths
    try_longest(
        world,
        engine,
        requests,
        feed,
        [lengths[number] for number in requests.targets],
        run.train.micro_batch,
        lambda text: say(f"before collecting, {text}"),
    )
    engine.close()
