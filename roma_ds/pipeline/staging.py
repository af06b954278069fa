"""One stage of a run: skipped where it is up to date, recorded where it was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from roma_ds.comm import World, agreement
from roma_ds.storage.stage import StageRecord


def run_stage(
    world: World,
    say: Callable[[str], None],
    title: str,
    record: StageRecord,
    inputs: Mapping[str, Any],
    outputs: list[str],
    work: Callable[[], Mapping[str, Any]],
    otherwise: Callable[[], str | None] = lambda: None,
) -> None:
    """Run `work` unless its record says that it is up to date; say which, and why. A collective.

    otherwise: a further reason to run it, or None.
    """
    world.at(title)
    with agreement(world):
        stale = record.why_stale(inputs) if world.is_first else None
    reason: str | None = world.from_first(stale) or otherwise()
    if reason is None:
        say(f"{title}: up to date")
        return
    say(f"{title}: {reason}")
    started = time.monotonic()
    facts = work()
    with agreement(world):
        if world.is_first:
            record.finish(inputs, outputs, time.monotonic() - started, facts)
    world.barrier()
