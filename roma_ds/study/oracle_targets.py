"""The routing weights that Oracle Tuning pulls each training sample to."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from roma_ds.baselines.descent import ORACLE
from roma_ds.baselines.test_time import described
from roma_ds.comm import agreement
from roma_ds.pipeline.targets import oracle_file
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, write_npy
from roma_ds.storage.stage import StageRecord
from roma_ds.study.alone import Alone
from roma_ds.study.work import Work


def make_oracle_targets(work: Work) -> dict[str, Any]:
    """Find them by descent and write them; returns the procedure and what it took. A collective.

    Ranks take whole batches in turn: a descent ends by the mean loss of its batch, so that the same batches
    give the same weights on any number of ranks.
    """
    started = time.monotonic()
    world = work.session.world
    with agreement(world):
        alone = Alone(work)
        folders, rows = alone.session.folders, alone.trained_rows()
        path = oracle_file(folders.training("oracle_tuning"))
        record = StageRecord(path.parent, "oracle")
        inputs = {
            "collect": alone.session.fingerprint(folders.record("collect")),
            "samples": fingerprint.of_json(rows),
            "layers": work.columns,
            "procedure": described(ORACLE),
        }
    if world.from_first(record.why_stale(inputs)) is not None:
        with agreement(world):
            size = alone.run_config.eval.batch_size
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            ours = [row for batch in batches[world.rank :: world.size] for row in batch]
            found, steps = alone.steering().oracle(alone.reference_questions(), ours, ORACLE)
            alone.session.release_frozen()
        parts = world.gather_to_first((ours, found, steps))
        with agreement(world):
            if parts is not None:
                make_folder(path.parent)
                routing = np.array(work.tables.routing)
                for its_rows, weights, _ in parts:
                    routing[np.ix_(its_rows, work.columns)] = weights.astype(routing.dtype)
                write_npy(path, routing)
                taken = [step for _, _, its_steps in parts for step in its_steps]
                facts = {"oracle_steps_taken_mean": float(np.mean(taken))}
                record.finish(inputs, [path.name], time.monotonic() - started, facts)
    return {"oracle": described(ORACLE), **record.read()["extra"]}
