"""A run that was stopped goes on where it was saved, and ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.projects import BIN, Finished, Forked, Project, Started, largest_difference, make_project, none_left

STEPS = 64
SAVE_EVERY = 8
LOG_EVERY = 4
SETTINGS = (f"train.save_every={SAVE_EVERY}", f"train.log_every={LOG_EVERY}", "train.lr=2.0e-3")
DIES_WITHIN_S = 60.0
JOB = "4711"

pytestmark = [pytest.mark.timeout(1200)]

Reference = Callable[[int], Project]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Slow enough steps to be hit, with all before training done."""
    project = make_project(
        tmp_path_factory.mktemp("long"), epochs=STEPS // 4, words=96, layers=6, hidden=64, experts=8
    )
    done = project.run("index", *SETTINGS, ranks=1)
    assert done.code == 0, done
    return project


@pytest.fixture(scope="module")
def uninterrupted(long_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    known: dict[int, Project] = {}

    def at(stage: int) -> Project:
        if stage not in known:
            project = long_run.copied(tmp_path_factory.mktemp("uninterrupted") / "out")
            done = project.run("train", f"deepspeed=zero{stage}", *SETTINGS)
            assert done.code == 0, done
            assert "resumed" not in done.out
            known[stage] = project
        return known[stage]

    return at


def slurm_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a Slurm job, with a scontrol that writes down what it is asked; where it does."""
    asked, program = folder / "asked", folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)]))
    return asked


@dataclass
class Attempt:
    """`roma-ds train` in the background, watched through metrics.jsonl."""

    project: Project
    stage: int
    ranks: int = 2
    more: tuple[str, ...] = ()
    typed: bool = False
    """Started as a user does, launcher and all."""

    def __post_init__(self) -> None:
        words = (f"deepspeed=zero{self.stage}", *SETTINGS, *self.more)
        arguments = self.project.arguments("train", *words, ranks=self.ranks)
        folder = self.project.folder
        self.started: Started | Forked = (
            Started([str(BIN / "roma-ds"), *arguments], folder) if self.typed else Forked(arguments, folder)
        )

    def reach(self, step: int) -> None:
        """Wait until a log line of this step or a later one is there."""
        deadline = time.monotonic() + 240
        while not any(line["step"] >= step for line in self.project.metrics()):
            if self.started.has_ended() or time.monotonic() > deadline:
                raise AssertionError(f"step {step} was not reached\n{self.started.finish(0.1)}")
            time.sleep(0.05)

    def signalled(self, signum: signal.Signals, step: int) -> tuple[Finished, int]:
        """Send a signal to `roma-ds` at `step`; how it ended, and the step it says was saved."""
        self.reach(step)
        family = self.started.descendants()
        self.started.signal(signum)
        done = self.started.finish(DIES_WITHIN_S)
        none_left(family)
        assert done.code == 128 + signum, done
        goes_on = f"job {JOB} is requeued" if signum == signal.SIGUSR1 else "rerun the same command"
        assert done.err.count("roma-ds: stopped") == 1 and goes_on in done.err, done
        assert "Traceback" not in done.err, done
        found = re.search(rf"stopped after step (\d+) of {STEPS}, which is saved", done.err)
        assert found, done
        assert (self.project.out / "train" / "state" / f"step-{found[1]}").is_dir()
        assert step <= int(found[1]) < STEPS
        return done, int(found[1])

    def with_a_killed_rank(self, step: int) -> int:
        """kill -9 of the last rank at `step`; the newest step that was saved before."""
        self.reach(step)
        family = self.started.descendants()
        self.started.ranks()[-1].kill()
        killed = time.monotonic()
        done = self.started.finish(DIES_WITHIN_S)
        assert time.monotonic() - killed < DIES_WITHIN_S
        none_left(family)
        assert done.code == 1, done
        assert "a rank was killed" in done.err and "rerun the same command" in done.err, done
        assert "Traceback" not in done.err, done
        saved = [int(path.name[5:]) for path in (self.project.out / "train" / "state").glob("step-*")]
        assert max(saved) >= step - SAVE_EVERY and max(saved) % SAVE_EVERY == 0
        return max(saved)

    def finished(self) -> Finished:
        done = self.started.finish(240)
        assert done.code == 0, done
        return done


def says_resumed(done: Finished, step: int) -> None:
    assert f"resumed after step {step} of {STEPS}" in done.out, done


def each_log_step_once(project: Project) -> None:
    steps = [line["step"] for line in project.metrics()]
    assert steps == [1, *range(LOG_EVERY, STEPS + 1, LOG_EVERY)]


def test_stopped_three_ways_and_run_again(
    long_run: Project, uninterrupted: Reference, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGTERM, then the loss of a rank, each time followed by the same command.

    All three through the launcher.
    """
    project = long_run.copied(tmp_path / "out")
    stage = 3
    _, saved = Attempt(project, stage, typed=True).signalled(signal.SIGINT, 8)

    attempt = Attempt(project, stage, typed=True)
    done, saved_next = attempt.signalled(signal.SIGTERM, 24)
    says_resumed(done, saved)

    saved = Attempt(project, stage, typed=True).with_a_killed_rank(40)
    assert saved > saved_next

    done = Attempt(project, stage).finished()
    says_resumed(done, saved)
    each_log_step_once(project)
    reference = uninterrupted(stage)
    assert largest_difference(project.routers(), reference.routers()) <= 1e-6
    last, wanted = project.metrics()[-1], reference.metrics()[-1]
    assert last["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_resumes_under_another_stage_and_another_number_of_ranks(
    long_run: Project, uninterrupted: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO 3, 2 and 0 on two ranks, then ZeRO 2 on one rank with the same global batch.

    First and last on cached hidden states, in between with the whole network. The first stop is that of a
    Slurm job whose time is up, which the launcher hears of too.
    """
    whole = ("train.prefix_cache=off",)
    project = long_run.copied(tmp_path / "out")
    asked = slurm_job(tmp_path, monkeypatch)
    _, saved = Attempt(project, 3, typed=True).signalled(signal.SIGUSR1, 8)
    assert asked.read_text() == f"requeue {JOB}\n", "once, by one rank"

    done, saved_next = Attempt(project, 2, more=whole).signalled(signal.SIGINT, 20)
    says_resumed(done, saved)

    saved = Attempt(project, 0, more=whole).with_a_killed_rank(36)
    assert saved >= saved_next

    alone = ("train.gradient_accumulation=2",)
    done, saved_next = Attempt(project, 2, ranks=1, more=alone).signalled(signal.SIGINT, 48)
    says_resumed(done, saved)

    done = Attempt(project, 2, ranks=1, more=alone).finished()
    says_resumed(done, saved_next)
    each_log_step_once(project)
    assert largest_difference(project.routers(), uninterrupted(0).routers()) <= 1e-5


def test_a_live_index_goes_on_from_a_killed_rank(long_run: Project, tmp_path: Path) -> None:
    """S and its routing weights follow training: a part of them on each of two ranks, then all on one rank,
    then parts on four, and S is at every logged step what it is without interruption."""
    live = ("roma.refresh=1", "index.check_every=1", "train.lr=3.0e-2", "roma.lambda=0.5")
    sharded, alone, four = (
        (*live, "index.placement=sharded"),
        (*live, "train.gradient_accumulation=2"),
        (*live, "index.placement=sharded", "train.micro_batch=4"),
    )
    reference = long_run.copied(tmp_path / "reference")
    done = reference.run("train", "deepspeed=zero0", *SETTINGS, *live)
    assert done.code == 0, done
    members = [line["successful"] for line in reference.metrics()]
    assert len(set(members)) > 2, members

    project = long_run.copied(tmp_path / "out")
    saved = Attempt(project, 0, more=sharded).with_a_killed_rank(20)
    done, saved_next = Attempt(project, 0, ranks=1, more=alone).signalled(signal.SIGTERM, 40)
    says_resumed(done, saved)
    done = Attempt(project, 0, ranks=4, more=four).finished()
    says_resumed(done, saved_next)
    each_log_step_once(project)
    assert [line["successful"] for line in project.metrics()] == members
    assert largest_difference(project.routers(), reference.routers()) <= 1e-5


def test_another_global_batch_is_not_resumed(long_run: Project, tmp_path: Path) -> None:
    project = long_run.copied(tmp_path / "out")
    words = ("train.epochs=1", *SETTINGS)
    assert project.run("train", *words, ranks=1).code == 0
    (project.out / "train" / "stage.json").unlink()
    done = project.run("train", *words, "train.micro_batch=16", ranks=1)
    assert done.code == 0, done
    assert "belongs to another config, data or global batch; not resumed" in done.out
    # Nothing of the run before is lost: with its batch it is done.
    again = project.run("train", *words, "train.batch=8", ranks=1)
    assert "resumed after step 8 of 8" in again.out, again
