"""What the launcher starts on every rank: the stages up to a goal."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from roma_ds.config import RunConfig, load_run_config, resolve_deepspeed
from roma_ds.errors import (
    RomaError,
)
from roma_ds.pipeline.ending import end_on_signals, explain, leave, report
from roma_ds.pipeline.plan_of_stages import (
    GIVEN,
    ON_ALL_RANKS,
    evaluated_variants,
    require_tasks,
    stages_until,
    trained_variants,
)

if TYPE_CHECKING:
    from roma_ds.comm import World
    from roma_ds.pipeline.folders import Folders
    from roma_ds.pipeline.session import Session
    from roma_ds.training.interruption import Interruption

GOALS = (*ON_ALL_RANKS, "export", "report")


def build_worker_parser() -> argparse.ArgumentParser:
    """Arguments of a rank; what the launchers append is accepted in both spellings."""
    parser = argparse.ArgumentParser(
        prog="roma_ds.train",
        description="Train routers by RoMA; started on every rank by the deepspeed launcher.",
    )
    parser.add_argument("--config", required=True, type=Path, help="the run's YAML file")
    parser.add_argument("--until", choices=GOALS, default="train", help="last stage to run")
    parser.add_argument("--variant", help="train or evaluate this variant alone")
    parser.add_argument(
        "--must-train", action="store_true", help="what follows needs routers: refuse a model without any"
    )
    parser.add_argument("--deepspeed", action="store_true", help="accepted for habit; always on")
    parser.add_argument(
        "--deepspeed_config", "--deepspeed-config", help="DeepSpeed JSON in place of the config's"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="appended by the launcher")
    parser.add_argument("--launch_id", help="marks the ranks of one start; nothing else is made of it")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the config's")
    return parser


class _KnownNoise(logging.Filter):
    """Drops lines that say nothing a user could act on."""

    quiet = (
        "ZeRO leaf module configuration did not match",  # none is wanted: experts are one fused module
        "A module has unknown inputs or outputs type",  # the root's output is opaque on purpose
        "OVERFLOW! Skipping step",  # training says so with the samples; the first batch wants it
    )

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in self.quiet)


def calm_libraries() -> None:
    """Keep the libraries' progress bars and deprecation notes off the console."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from deepspeed.utils import logger
    from transformers.utils import logging as transformers_logging

    logger.addFilter(_KnownNoise())
    logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def overrides_for(overrides: Sequence[str], deepspeed_config: str | None) -> list[str]:
    """The command line's overrides, its DeepSpeed JSON among them."""
    return [*overrides, *([f"deepspeed={Path(deepspeed_config).resolve()}"] if deepspeed_config else [])]


def load_for(config: Path, overrides: Sequence[str], deepspeed_config: str | None) -> RunConfig:
    """The run config with the command line's DeepSpeed JSON in place of the file's."""
    return load_run_config(config, overrides_for(overrides, deepspeed_config))


def run_stages(run: RunConfig, goal: str, variant: str | None, must_train: bool = False) -> None:
    """Run the stages up to `goal` on this rank. A collective over the launcher's ranks."""
    from roma_ds.comm import start_world
    from roma_ds.comm.absence import named_absence
    from roma_ds.comm.watch import watched
    from roma_ds.network.release import keep_large_blocks_apart
    from roma_ds.training.interruption import Interruption

    calm_libraries()
    keep_large_blocks_apart()
    interruption = Interruption().listen()
    timeout = timedelta(seconds=run.guards.collective_timeout)
    world = start_world(timeout=timeout)
    with named_absence(world, timeout.total_seconds()), watched(world, run.guards.lost_after):
        try:
            _run_on(world, run, goal, variant, must_train, interruption)
        except RomaError:
            # A launcher sends SIGTERM when it sees another rank's end: that must not become the message.
            interruption.deferred = True
            raise


def _run_on(
    world: World,
    run: RunConfig,
    goal: str,
    variant: str | None,
    must_train: bool,
    interruption: Interruption,
) -> None:
    import torch

    from roma_ds.comm import agreement
    from roma_ds.network.release import leave_libraries_alone
    from roma_ds.pipeline.base_only import evaluate_base, is_base_only
    from roma_ds.pipeline.machine_support import check_machine
    from roma_ds.pipeline.session import Session
    from roma_ds.storage.run_lock import locked

    torch.manual_seed(run.train.seed)
    with contextlib.ExitStack() as held:
        with agreement(world):
            ds = resolve_deepspeed(run, world.size)
            check_machine(ds, world.is_first)
            if world.is_first:
                held.enter_context(locked(Path(run.output_dir)))
        if not must_train and is_base_only(world, run, goal, variant):
            evaluate_base(world, run, ds)
        else:
            session = Session(world, run, ds, interruption)
            leave_libraries_alone()
            _run_session(world, session, goal, variant)
    world.close()


def _run_session(world: World, session: Session, goal: str, variant: str | None) -> None:
    from roma_ds.comm import agreement
    from roma_ds.monitor.services import send_results
    from roma_ds.pipeline import stages
    from roma_ds.pipeline.acceptance import accept, accept_data, must_embed
    from roma_ds.pipeline.evaluating import eval_stage
    from roma_ds.pipeline.measuring import try_judges

    run = session.run
    needed = stages_until(goal) if variant not in ("base", GIVEN) else ("data", "eval")
    embeds = False
    with agreement(world):
        if world.is_first and "embed" in needed:
            embeds = must_embed(run, session.folders)
    embeds = world.from_first(embeds)
    with agreement(world):
        accept(run, session.whole, world.size, embeds, "index" in needed)
    stages.data_stage(session)
    with agreement(world):
        accept_data(run, session, "index" in needed)
        # Of a run that is there already only once something of it changes: a stage may still refuse.
        if not session.folders.is_described:
            session.describe()
    if "collect" in needed:
        try_judges(session)
    steps = {
        "embed": stages.embed_stage,
        "collect": stages.collect_stage,
        "index": stages.index_stage,
        "train": lambda s: stages.train_stage(s, trained_variants(run, variant)),
        "eval": lambda s: eval_stage(s, evaluated_variants(run, variant)),
    }
    for name in needed:
        if name in steps:
            steps[name](session)
        if name == "index" and "eval" in needed:
            # Now, while the whole network is in memory, rather than load it again after training.
            eval_stage(session, ("base",))
    with agreement(world):
        session.describe()
    # Export and report may follow in this process.
    session.release_frozen()
    with agreement(world):
        if world.is_first:
            if any(title.startswith("eval ") for title in session.made):
                send_results(session.folders.root)
            finish(needed, run, session.folders)


def finish(stages: Sequence[str], run: RunConfig, folders: Folders, fetch: bool = False) -> None:
    """The stages after the last one that needs ranks, as far as they are among `stages`.

    fetch: whether the hub may be asked for what a published card says.
    """
    from roma_ds.pipeline import finishing

    def say(text: str) -> None:
        print(text, flush=True)

    if "export" in stages:
        finishing.export(run, folders, say, fetch)
    if "report" in stages:
        finishing.write_report(run, folders, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this rank; the exit code says how it ended (see the README)."""
    options = build_worker_parser().parse_intermixed_args(arguments)
    from roma_ds.comm.meeting import adopt_meeting
    from roma_ds.comm.ranks import Ranks, adopt_ranks
    from roma_ds.comm.visible_devices import adopt_visible_devices

    adopt_visible_devices()
    ranks = Ranks()
    try:
        ranks = adopt_ranks()
        adopt_meeting(ranks)
        run = load_for(options.config, options.overrides, options.deepspeed_config)
        if not options.must_train:
            require_tasks(options.until, run)
    except RomaError as error:
        # All ranks of a host read the same files: one message a host.
        return report(error, ranks.rank) if ranks.local_rank == 0 else error.exit_code
    try:
        run_stages(run, options.until, options.variant, options.must_train)
    except Exception as error:  # noqa: BLE001  the last resort of a process: say everything, end at once
        return explain(error, ranks.rank)
    return 0


def main_and_exit() -> NoReturn:
    """`main`, then end at once."""
    end_on_signals()
    leave(main())
