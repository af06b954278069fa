"""A state saved by four ranks under ZeRO 3 is gone on from by fewer ranks under every stage."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Project, largest_difference
from distributed.stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.errors import Interrupted
from roma_ds.testing.local_ranks import on_ranks

LIMIT_S = 700.0
pytestmark = pytest.mark.timeout(1500)

CLOSE = 1e-5
STOPPED_AFTER = 7
STAGES = (0, 1, 2, 3)
COMMON = (
    *("train.epochs=3", "train.log_every=1", "train.save_every=100", "roma.lambda=0.5"),
    # Uneven parts on any number of ranks.
    *("train.batch=11", "train.micro_batch=4"),
)


def words(ranks: int, stage: int, out: Path) -> list[str]:
    return [*COMMON, f"deepspeed=zero{stage}", f"output_dir={out}"]


def train_each(world: World, config: Path, runs: list[list[str]], stop_after: int = 0) -> list[list[str]]:
    """Train one after the other; with `stop_after` each gets a SIGTERM in that step."""
    from roma_ds.training.loop import Training

    step = Training._step

    def signalled(self: Any, number: int, logged: bool) -> Any:
        if number + 1 == stop_after and world.rank == world.size - 1:
            self.interruption.signum = signal.SIGTERM
        return step(self, number, logged)

    Training._step = signalled  # type: ignore[method-assign]
    said = []
    for given in runs:
        try:
            said.append(run_stages(world, config, given, "train"))
        except Interrupted as stopped:
            said.append([stopped.message])
    Training._step = step  # type: ignore[method-assign]
    return said


def test_the_loss_goes_on_whatever_ranks_and_stage_resume(indexed: Project, tmp_path: Path) -> None:
    whole, stopped = indexed.copied(tmp_path / "whole"), indexed.copied(tmp_path / "stopped")
    on_ranks(4, train_each, indexed.config, [words(4, 3, whole.out)], timeout_s=LIMIT_S)
    said = on_ranks(
        4, train_each, indexed.config, [words(4, 3, stopped.out)], STOPPED_AFTER, timeout_s=LIMIT_S
    )
    assert said[0] == [[f"stopped after step {STOPPED_AFTER} of 18, which is saved"]]
    wanted = {line["step"]: line["loss"] for line in whole.metrics()}
    assert len(wanted) == 18
    for ranks in (1, 2, 3):
        resumed = [stopped.copied(tmp_path / f"{ranks}-{stage}") for stage in STAGES]
        runs = [words(ranks, stage, run.out) for stage, run in zip(STAGES, resumed, strict=True)]
        said = on_ranks(ranks, train_each, indexed.config, runs, timeout_s=LIMIT_S)
        for stage, run, lines in zip(STAGES, resumed, said[0], strict=True):
            assert f"resumed after step {STOPPED_AFTER} of 18" in lines
            losses = {line["step"]: line["loss"] for line in run.metrics()}
            worst = max(abs(losses[step] - wanted[step]) for step in wanted)
            assert losses.keys() == wanted.keys() and worst < CLOSE, (ranks, stage, worst)
            assert largest_difference(run.routers(), whole.routers()) < CLOSE


def test_a_signal_in_the_last_step_ends_the_run_after_saving(indexed: Project, tmp_path: Path) -> None:
    run = indexed.copied(tmp_path / "out")
    twice = [words(1, 0, run.out)] * 2
    stopped, again = on_ranks(1, train_each, indexed.config, twice, 18, timeout_s=LIMIT_S)[0]
    assert stopped == ["stopped after step 18 of 18, which is saved"]
    assert "resumed after step 18 of 18" in again
    assert [line["step"] for line in run.metrics()][-1] == 18 and run.routers()
