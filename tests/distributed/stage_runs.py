"""The stages of a run, one after the other, on ranks that are there already."""

from __future__ import annotations

from pathlib import Path

from roma_ds.comm import World


def run_stages(world: World, config: Path, words: list[str], goal: str = "eval") -> list[str]:
    """The stages of `roma-ds GOAL` on ranks that are there already; what they said.

    goal: `embed`, `collect`, `train` or `eval`.
    """
    from roma_ds.config import load_run_config, resolve_deepspeed
    from roma_ds.pipeline import stages
    from roma_ds.pipeline.evaluating import eval_stage
    from roma_ds.pipeline.plan_of_stages import evaluated_variants, trained_variants
    from roma_ds.pipeline.session import Session
    from roma_ds.pipeline.worker import calm_libraries
    from roma_ds.training.interruption import Interruption

    calm_libraries()
    run = load_run_config(config, words)
    session = Session(world, run, resolve_deepspeed(run, world.size), Interruption())
    said: list[str] = []
    session.say = said.append  # type: ignore[method-assign]
    stages.data_stage(session)
    stages.embed_stage(session)
    if goal != "embed":
        stages.collect_stage(session)
    if goal in ("train", "eval"):
        stages.index_stage(session)
        stages.train_stage(session, trained_variants(run, None))
    if goal == "eval":
        eval_stage(session, evaluated_variants(run, None))
    session.release_frozen()
    return said
