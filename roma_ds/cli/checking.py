"""`roma-ds check`: everything about a run that can be known without weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from roma_ds.config import RunConfig, resolve_deepspeed
from roma_ds.errors import RomaError, UserError


def _deepspeed(run: RunConfig, world_size: int) -> str:
    stage = resolve_deepspeed(run, world_size).get("zero_optimization", {}).get("stage", 0)
    return f"ZeRO stage {stage}, {world_size} ranks, global batch " + str(
        run.train.micro_batch * run.train.gradient_accumulation * world_size
    )


def _model(run: RunConfig, world_size: int) -> str:
    from roma_ds.backbone.loading import load_config
    from roma_ds.families import family_of

    config = load_config(run.model)
    family = family_of(config)
    shape = f"{config.num_hidden_layers} layers, {family.experts(config)} experts, top-{family.top_k(config)}"
    return f"{family.name}, {shape}"


def _data(run: RunConfig, world_size: int) -> str:
    from roma_ds.data import load_evaluation, load_training, preview

    training, _ = load_training(run)
    evaluation = load_evaluation(run)
    text = f"{len(training)} training and {len(evaluation)} evaluation samples"
    return f"{text}\n\n{preview(training, 2)}\n"


CHECKS: tuple[tuple[str, Callable[[RunConfig, int], str]], ...] = (
    ("DeepSpeed", _deepspeed),
    ("model", _model),
    ("data", _data),
)


def check_run(options: argparse.Namespace) -> int:
    """Run all checks, print what each found. Raises UserError with every problem at once."""
    from roma_ds.pipeline.worker import load_for

    run = load_for(options.config, options.overrides, options.ds)
    print(f"config: {options.config} is valid")
    problems = []
    for name, check in CHECKS:
        try:
            print(f"{name}: {check(run, options.world_size)}")
        except RomaError as error:
            problems.append(error)
            print(f"{name}: not usable, see below")
    if problems:
        raise UserError("\n".join(str(problem) for problem in problems))
    return 0
