"""The data stage alone: it needs no ranks and no torch, so a mistake in the data shows at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from roma_ds.config import RunConfig
from roma_ds.data.store import OUTPUTS, data_inputs, run_data
from roma_ds.pipeline.folders import Folders


def make_data(
    run: RunConfig,
    folders: Folders,
    say: Callable[[str], None],
    before_change: Callable[[], None] = lambda: None,
) -> None:
    """Read, check and render all data unless it is up to date. Raises UserError on bad input.

    before_change: called before anything is made or made anew; may refuse that.
    """
    record = folders.record("data")
    inputs = data_inputs(run)
    reason = record.why_stale(inputs)
    if reason is None:
        say("data: up to date")
        return
    before_change()
    say(f"data: {reason}")
    started = time.monotonic()
    manifest = run_data(run, folders.root, lambda line: say(f"data: {line}"))
    facts = {part: manifest[part]["samples"] for part in ("training", "evaluation")}
    record.finish(inputs, list(OUTPUTS), time.monotonic() - started, facts)
    say(f"data: {facts['training']} training and {facts['evaluation']} evaluation samples")
