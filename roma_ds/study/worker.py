"""What the launcher starts on every rank for a study."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from roma_ds.comm.visible_devices import adopt_visible_devices
from roma_ds.config.study import StudyConfig, load_study_config
from roma_ds.pipeline.ending import end_on_signals, explain, leave
from roma_ds.study.plan import Planner


def planner_of(study: StudyConfig) -> Planner:
    """The planner, on the run config's file. Raises UserError where the study or a cell's config is wrong."""
    config = Path(study.run)
    if study.run == "demo":
        config = Path(study.output_dir) / "project" / "run.yaml"
    planner = Planner(study, config)
    planner.everything()
    planner.shared_run()
    return planner


def run_study(study: StudyConfig) -> None:
    """All cells on this rank. A collective over the launcher's ranks."""
    import torch

    from roma_ds.comm import agreement, start_world
    from roma_ds.comm.absence import named_absence
    from roma_ds.comm.watch import watched
    from roma_ds.network.release import keep_large_blocks_apart
    from roma_ds.pipeline.worker import calm_libraries
    from roma_ds.storage.run_lock import locked
    from roma_ds.study.runner import Runner
    from roma_ds.training.interruption import Interruption

    calm_libraries()
    keep_large_blocks_apart()
    interruption = Interruption().listen()
    planner = planner_of(study)
    guards = planner.shared_run().guards
    timeout = timedelta(seconds=guards.collective_timeout)
    world = start_world(timeout=timeout)
    torch.manual_seed(study.seeds[0])
    with named_absence(world, timeout.total_seconds()), watched(world, guards.lost_after):
        with contextlib.ExitStack() as held:
            with agreement(world):
                if world.is_first:
                    held.enter_context(locked(Path(study.output_dir)))
            Runner(world, study, planner, interruption).run()
    world.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this rank; the exit code says how it ended."""
    parser = argparse.ArgumentParser(prog="roma_ds.study.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, type=Path, help="the study's YAML file")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="appended by the launcher")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the study's")
    options = parser.parse_intermixed_args(arguments)
    adopt_visible_devices()
    rank = int(os.environ.get("RANK", 0))
    try:
        run_study(load_study_config(options.study, options.overrides))
    except Exception as error:  # noqa: BLE001  the last resort of a process: say everything, end at once
        return explain(error, rank)
    return 0


if __name__ == "__main__":
    end_on_signals()
    leave(main())
