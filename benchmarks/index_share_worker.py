"""roma_ds.train with the live index's part of every step timed; started on ranks by `index_speed.py share`.

    deepspeed --num_accelerators 2 benchmarks/index_share_worker.py --config RUN.yaml --out FOLDER --steps 220

Runs the package as it is, read from outside. The training is cut off behind `--steps` steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import Record, resident_bytes
from prefix_worker import Shares, instrument

NEIGHBOURS, OUTCOMES, UPDATES = "neighbours", "outcomes", "updates and checks"
INDEX = (NEIGHBOURS, OUTCOMES, UPDATES)
"""What the training waits for."""
BESIDE = "processor time beside the training"
"""Of the index's own thread."""


def time_index(record: Record) -> None:
    """Time how long the training waits for its targets, and what the index does meanwhile.

    Nothing is added that ranks would wait for. Targets that stay as they were collected are timed likewise.
    """
    from roma_ds.index.courier import Courier
    from roma_ds.training.live_targets import LiveTargets
    from roma_ds.training.targets import ManifoldTargets

    shares = Shares(record)
    for owner in (LiveTargets, ManifoldTargets):
        shares.wrap(owner, "ask", NEIGHBOURS)
        _time_answers(shares, owner)
        shares.wrap(owner, "observe", OUTCOMES)
        shares.wrap(owner, "observed", UPDATES)
        shares.wrap(owner, "after_step", UPDATES)
        _note_steps(record, shares, owner)
    send = Courier.send

    def sent(self: Courier, work: Callable[[], Any]) -> Any:
        def timed() -> Any:
            begun = time.thread_time()
            try:
                return work()
            finally:
                shares.seconds[BESIDE] = shares.seconds.get(BESIDE, 0.0) + time.thread_time() - begun

        return send(self, timed)

    Courier.send = sent  # type: ignore[method-assign]


def _time_answers(shares: Shares, owner: Any) -> None:
    """Also time the wait for what was asked."""
    ask = owner.ask
    owner.ask = lambda self, *given: shares.timed(ask(self, *given), NEIGHBOURS)


def _note_steps(record: Record, shares: Shares, owner: Any) -> None:
    """Write down the sums behind every step."""
    inner = owner.after_step

    def noted(self: Any, done: int) -> None:
        inner(self, done)
        row = {**shares.seconds, "clock": time.perf_counter(), "successful": self.successful}
        record.facts.setdefault("by_step", []).append(row)
        record.facts["searched"] = getattr(getattr(self, "neighbours", None), "searched", 0)
        record.facts["memory"] = resident_bytes("RssAnon")

    owner.after_step = noted


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
