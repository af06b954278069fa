"""The commands; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from roma_ds.cli.devices import likely_ranks, most_ranks, place_ranks
from roma_ds.cli.launcher_flags import LOCAL, NO_SSH, LauncherFlags, read_launcher_flags
from roma_ds.cli.launching import launcher_environment, run_launcher
from roma_ds.cli.reaching import reach_hosts
from roma_ds.config import preset_names, preset_text, study_names, study_text
from roma_ds.errors import UserError
from roma_ds.pipeline.folders import Folders
from roma_ds.storage.run_lock import locked

DEMO_RANKS = 2


def _say(text: str) -> None:
    print(text, flush=True)


def _worker_arguments(options: argparse.Namespace, goal: str) -> list[str]:
    arguments = ["--config", str(options.config), "--until", goal]
    if goal == "eval" and options.command != "eval":
        arguments.append("--must-train")
    if getattr(options, "variant", None):
        arguments += ["--variant", options.variant]
    if options.ds:
        arguments += ["--deepspeed_config", options.ds]
    return [*arguments, *options.overrides]


def run(options: argparse.Namespace, launcher_flags: Sequence[str] = ()) -> int:
    """`run` and the single stages: what needs no ranks here, the rest through the launcher."""
    from roma_ds.cli.routers.evaluated import evaluated_router
    from roma_ds.cli.routers.publishing import push, ready_destination
    from roma_ds.config import resolve_deepspeed
    from roma_ds.pipeline.data import make_data
    from roma_ds.pipeline.plan_of_stages import GIVEN, ON_ALL_RANKS, VARIANTS, require_tasks, stages_until
    from roma_ds.pipeline.worker import finish, load_for

    goal = "report" if options.command == "run" else options.command
    if options.command == "report" and options.config.is_dir():
        return compare(options)
    variant = getattr(options, "variant", None)
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"--variant {variant} is unknown", f"use one of {', '.join(VARIANTS)}")
    router = evaluated_router(options)
    if router is not None:
        variant = options.variant = GIVEN
    _refuse_inside_ranks()
    run_config = load_for(options.config, options.overrides, options.ds)
    require_tasks(goal, run_config)
    destination = ready_destination(options)
    flags = read_launcher_flags(launcher_flags, options.ranks)
    needed = stages_until(goal)
    folders = Folders(Path(run_config.output_dir))
    on_ranks = any(stage in ON_ALL_RANKS for stage in needed)
    ranks: int | None = options.ranks
    if on_ranks:
        flags, ranks = place_ranks(flags, ranks)
    elif ranks is None and not flags.hosts:
        ranks = likely_ranks()
    world_size = max(1, flags.world_size or ranks or 1)
    resolve_deepspeed(run_config, world_size, judged=False)
    if on_ranks:
        flags = reach_hosts(flags)
        _forget_left_ranks(options.ranks, ranks, flags)

    def accepted() -> None:
        if not on_ranks:
            return
        world_size = max(1, flags.world_size or ranks or 1)
        resolve_deepspeed(run_config, world_size)
        # Other hosts may see another checkpoint than this one does.
        if not flags.hosts:
            from roma_ds.pipeline.acceptance import accept_unread
            from roma_ds.pipeline.worker import calm_libraries

            calm_libraries()
            trains = variant not in ("base", GIVEN)
            accept_unread(
                run_config, world_size, goal, trains and "embed" in needed, trains and "index" in needed
            )

    # With a command on every host, the first one does what is done once.
    first = flags.kind != NO_SSH or flags.node_rank == 0
    if first:
        with locked(folders.root):
            make_data(run_config, folders, _say, accepted)
            if router is not None:
                router.place(folders.training(GIVEN))
    if on_ranks:
        last = [stage for stage in needed if stage in ON_ALL_RANKS][-1]
        code = _on_ranks(options, flags, ranks, last)
        if code:
            return code
    if first:
        with locked(folders.root):
            finish(needed, run_config, folders, fetch=destination is not None and not options.dry_run)
            if destination is not None:
                push(destination, run_config, folders.stage("export"), options.dry_run, _say)
    return 0


def compare(options: argparse.Namespace) -> int:
    """`report` with folders of runs in place of a config: one table of all of them."""
    from roma_ds.monitor.side_by_side import compare_runs, comparison_table

    folders = [options.config, *map(Path, options.overrides)]
    _say(comparison_table(compare_runs(folders)))
    return 0


def _on_ranks(options: argparse.Namespace, flags: LauncherFlags, ranks: int | None, last: str) -> int:
    arguments = _worker_arguments(options, last)
    if _is_alone(ranks, flags):
        from roma_ds.pipeline.worker import main as worker

        os.environ.update(launcher_environment())
        return worker(arguments)
    return run_launcher(ranks, flags, arguments)


def _is_alone(ranks: int | None, flags: LauncherFlags) -> bool:
    """Whether the ranks are this process alone."""
    chooses = flags.include or flags.exclude or flags.num_gpus
    return ranks == 1 and flags.kind == LOCAL and not flags.given and not chooses


def _forget_left_ranks(typed: int | None, ranks: int | None, flags: LauncherFlags) -> None:
    """Unset, with a word, what a shell has left of other ranks, where it is clear that ranks start here."""
    from roma_ds.comm.ranks import set_by_launcher

    left = set_by_launcher()
    if not left or (typed is None and _is_alone(ranks, flags)):
        return
    words = " ".join(f"{name}={os.environ.pop(name)}" for name in left)
    by = f"--ranks {typed}" if typed is not None else "this command"
    print(
        f"roma-ds: {words} in the environment is ignored: {by} starts the ranks", file=sys.stderr, flush=True
    )


def _refuse_inside_ranks() -> None:
    """Raises UserError where srun or mpirun started this command several times: it starts ranks itself."""
    if not any(name in os.environ for name in ("SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        return
    from roma_ds.comm.ranks import ranks_from

    ranks = ranks_from()
    if ranks.world_size > 1:
        raise UserError(
            f"srun or mpirun started this command {ranks.world_size} times over, and it starts ranks itself",
            "let srun or mpirun start `python -m roma_ds.train --config RUN.yaml`, see docs/multi-node.md",
        )


def demo(options: argparse.Namespace) -> int:
    """Write the demo's data and config, then run it like any other."""
    from roma_ds.demo.project import write_project

    ranks = options.ranks if options.ranks is not None else most_ranks(DEMO_RANKS)
    config = write_project(options.out, options.seed, options.zero_stage)
    _say(f"demo: config {config}")
    run_options = argparse.Namespace(
        command="run", config=config, overrides=options.overrides, ranks=ranks, ds=None
    )
    return run(run_options)


def study(options: argparse.Namespace) -> int:
    """Run every cell of a study that is not finished, and write its report."""
    from roma_ds.config.study import load_study_config
    from roma_ds.demo.project import write_study_project
    from roma_ds.study.report import write_study_report
    from roma_ds.study.worker import main as worker
    from roma_ds.study.worker import planner_of

    _refuse_inside_ranks()
    config = load_study_config(options.config, options.overrides)
    if config.run == "demo":
        write_study_project(Path(config.output_dir) / "project")
    planner_of(config)
    flags, ranks = place_ranks(LauncherFlags((), LOCAL, {}), options.ranks)
    _forget_left_ranks(options.ranks, ranks, flags)
    arguments = ["--study", str(options.config), *options.overrides]
    if ranks == 1:
        os.environ.update(launcher_environment())
        code = worker(arguments)
    else:
        code = run_launcher(ranks, flags, arguments, "roma_ds.study.worker")
    if not code:
        _say(write_study_report(Path(config.output_dir)))
    return code


def init(options: argparse.Namespace) -> int:
    """Print a packaged config, or with --data one for these files and that model."""
    if options.data:
        from roma_ds.cli.first import make_config

        return make_config(options)
    if options.test or options.overrides:
        raise UserError(
            f"{'--test' if options.test else options.overrides[0]} goes with --data alone",
            "name what to train on by --data, or change the packaged config after printing it",
        )
    names = (*preset_names(), *study_names())
    if options.name not in names:
        raise UserError(
            f"there is no packaged config '{options.name}'",
            f"use one of {', '.join(names)}; for a model and data of your own, name the data by --data",
        )
    text = study_text if options.name in study_names() else preset_text
    sys.stdout.write(text(options.name))
    return 0


def ls(options: argparse.Namespace) -> int:
    """List packaged configs, families, tasks, or finished runs."""
    from roma_ds.cli import listing

    for line in listing.lines(options.what, options.under):
        _say(line)
    return 0


def check(options: argparse.Namespace) -> int:
    """Check a run without weights."""
    from roma_ds.cli.checking import check_run

    return check_run(options)


def plan(options: argparse.Namespace) -> int:
    """Say what a model will need."""
    from roma_ds.cli.planning import plan_model

    return plan_model(options)


def merge(options: argparse.Namespace) -> int:
    """Merge a router file into its base checkpoint, or a GGUF file of it."""
    from roma_ds.cli.routers.merging import merge_router

    return merge_router(options)


def doctor(options: argparse.Namespace) -> int:
    """Look at this machine."""
    from roma_ds.cli.doctor import run_doctor

    return run_doctor(json=options.json)
