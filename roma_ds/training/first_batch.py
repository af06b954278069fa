"""A batch of the longest samples, forward and backward, before training: lack of memory shows now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from roma_ds.comm import World
from roma_ds.errors import EnvironmentFault, out_of_memory
from roma_ds.prefix.feed import Feed
from roma_ds.sequences.request_set import Requests
from roma_ds.training.engine import RouterEngine
from roma_ds.training.step import task_term


def try_longest(
    world: World,
    engine: RouterEngine,
    requests: Requests,
    feed: Feed,
    lengths: Sequence[int],
    micro_batch: int,
    say: Callable[[str], None],
) -> None:
    """Run `micro_batch` of the longest samples on every rank; nothing is updated or counted. A collective.

    lengths: tokens of every row. No micro-batch of training has more tokens. Raises EnvironmentFault on a
    rank whose memory does not suffice.
    """
    started = time.monotonic()
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))[:micro_batch]
    tokens = sum(lengths[row] for row in rows)
    size = f"{len(rows)} samples of up to {lengths[rows[0]]} tokens, {tokens} in all"
    try:
        engine.allocate_moments()
        batch = feed.batch([requests.targets[row] for row in rows])
        output = engine.forward(batch)
        loss = task_term(output.logits, batch, len(batch.rows)).sum() + output.routing.sum()
        # A gradient that is not finite is never applied, whatever the ZeRO stage.
        engine.backward(loss * float("nan"), last=True)
        engine.step(0.0)
    except Exception as error:
        fault = out_of_memory(error)
        if fault is None:
            raise
        message = f"the first batch ({size}) on rank {world.rank}: {fault.message}"
        raise EnvironmentFault(message, fault.fix) from error
    world.barrier()
    say(f"first batch: {size}; fits, {time.monotonic() - started:.1f} s")
