"""roma_ds.train with the live index's part of every step timed; started on ranks by `index_speed.py share`.

    deepspeed --num_accelerators 2 benchmarks/index_share_worker.py --config RUN.yaml --out FOLDER --steps 220

Runs the package as it is, read from outside. The training is cut off behind `--steps` steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from measured import Record, resident_bytes
from prefix_worker import Shares, instrument

NEIGHBOURS, OUTCOMES, UPDATES = "neighbours", "outcomes", "updates and checks"
INDEX = (NEIGHBOURS, OUTCOMES, UPDATES)
"""What the live index takes; the first two happen within `steps`."""
WAITING, WAITING_INSIDE = "waiting for the slowest rank", "waiting before neighbours"
"""The second is within `steps`."""


def time_index(record: Record) -> None:
    """Time what training asks of the live index, and all of a step; ranks meet first, so that nobody's
    part holds the wait for another."""
    from roma_ds.training import loop
    from roma_ds.training.live_targets import LiveTargets

    shares = Shares(record)
    shares.wrap(LiveTargets, "of", NEIGHBOURS, WAITING_INSIDE)
    shares.wrap(LiveTargets, "observe", OUTCOMES)
    shares.wrap(LiveTargets, "after_step", UPDATES, WAITING)
    shares.wrap(loop.Training, "_agree", "agreement", WAITING)
    shares.wrap(loop.Training, "_step", "steps")
    inner = LiveTargets.after_step

    def noted(self: LiveTargets, done: int) -> None:
        inner(self, done)
        row = {**shares.seconds, "clock": time.perf_counter(), "successful": self.successful}
        record.facts.setdefault("by_step", []).append(row)
        record.facts["searched"] = self.neighbours.searched
        record.facts["memory"] = resident_bytes("RssAnon")

    LiveTargets.after_step = noted  # type: ignore[method-assign]


def cut_off(steps: int) -> None:
    """Let every training end behind `steps` steps."""
    from roma_ds.training.batch_order import BatchOrder

    whole = BatchOrder.steps.fget  # type: ignore[attr-defined]

    def fewer(self: Any) -> int:
        return min(steps, whole(self))

    BatchOrder.steps = property(fewer)  # type: ignore[method-assign,assignment]


def main() -> None:
    """Instrument, then run as roma_ds.train does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options, rest = parser.parse_known_args()
    from roma_ds.pipeline import worker

    record = Record(0)
    time_index(record)
    cut_off(options.steps)
    instrument(record, argparse.Namespace(out=options.out, count_bytes=False, matrix_rate=False))
    sys.argv[1:] = rest
    worker.main_and_exit()


if __name__ == "__main__":
    main()
