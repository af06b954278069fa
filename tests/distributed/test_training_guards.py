"""Steps that are not finite are left out or stop the run, on all ranks; the first batch changes nothing."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Project, largest_difference
from distributed.stage_runs import run_stages

from roma_ds.comm import World
from roma_ds.errors import RomaError
from roma_ds.testing.local_ranks import on_ranks

LIMIT_S = 700.0
pytestmark = pytest.mark.timeout(1500)

COMMON = ("train.epochs=1", "train.micro_batch=4", "train.log_every=1", "train.save_every=3")
BAD_STEP = 4
NAMED = "samples: train/train/r"


def train_each(world: World, config: Path, runs: list[list[str]], bad: float | None) -> list[Any]:
    """Train one after the other; in step BAD_STEP the loss of rank 1's samples is `bad`."""
    from roma_ds.training import step as module
    from roma_ds.training.loop import Training

    original, term = Training._step, module.task_term
    number = 0

    def counted(self: Any, step: int, logged: bool) -> Any:
        nonlocal number
        number = step + 1
        return original(self, step, logged)

    def spoiled(*given: Any) -> Any:
        found = term(*given)
        return found + bad if bad is not None and number == BAD_STEP and world.rank == 1 else found

    Training._step, module.task_term = counted, spoiled  # type: ignore[method-assign]
    ends: list[Any] = []
    for given in runs:
        try:
            ends.append(run_stages(world, config, given, "train"))
        except RomaError as error:
            ends.append((error.exit_code, error.agreed, str(error)))
    return ends


def words(stage: int, out: Path, *more: str) -> list[str]:
    return [*COMMON, f"deepspeed=zero{stage}", f"output_dir={out}", *more]


@pytest.mark.parametrize(
    ("dtype", "bad", "stages"),
    [("float32", float("nan"), (0, 1, 2, 3)), ("bfloat16", float("inf"), (3,))],
    ids=("float32", "bfloat16"),
)
def test_a_step_that_is_not_finite_is_left_out_on_all_ranks(
    dtype: str, bad: float, stages: tuple[int, ...], indexed: Project, tmp_path: Path
) -> None:
    runs = [indexed.copied(tmp_path / str(stage)) for stage in stages]
    given = [
        words(stage, run.out, "train.on_non_finite=skip", f"model.dtype={dtype}")
        for stage, run in zip(stages, runs, strict=True)
    ]
    ends = on_ranks(2, train_each, indexed.config, given, bad, timeout_s=LIMIT_S)
    for run, said in zip(runs, ends[0], strict=True):
        told = [line for line in said if "not finite" in line]
        assert len(told) == 1 and told[0].endswith("the step is skipped"), said
        assert f"at step {BAD_STEP}; {NAMED}" in told[0]
        lines = run.metrics()
        assert [line["step"] for line in lines if line["loss"] is None] == [BAD_STEP]
        assert [line["skipped_steps"] for line in lines] == [0] * 3 + [1] * (len(lines) - 3)
        found = run.routers()
        assert all(np.isfinite(tensor).all() for tensor in found.values())
        close = 1e-6 if dtype == "float32" else 2e-2
        assert largest_difference(found, runs[0].routers()) < close


def test_a_step_that_is_not_finite_stops_all_ranks_and_the_run_goes_on_without_it(
    indexed: Project, tmp_path: Path
) -> None:
    runs = {stage: indexed.copied(tmp_path / str(stage)) for stage in (0, 3)}
    stopping = [words(stage, run.out) for stage, run in runs.items()]
    ends = on_ranks(2, train_each, indexed.config, stopping, float("nan"), timeout_s=LIMIT_S)
    for first, second in zip(*ends, strict=True):
        assert first == second
        assert first[:2] == (2, True)
        assert f"not finite at step {BAD_STEP}; {NAMED}" in first[2] and "on_non_finite=skip" in first[2]
    skipping = [words(stage, run.out, "train.on_non_finite=skip") for stage, run in runs.items()]
    ends = on_ranks(2, train_each, indexed.config, skipping, float("nan"), timeout_s=LIMIT_S)
    for run, said in zip(runs.values(), ends[0], strict=True):
        assert "resumed after step 3 of 8" in said
        assert largest_difference(run.routers(), runs[0].routers()) < 1e-6


def test_the_first_batch_leaves_no_trace(indexed: Project, tmp_path: Path) -> None:
    stages = (0, 3)
    pairs = [(indexed.copied(tmp_path / f"{n}"), indexed.copied(tmp_path / f"{n}-off")) for n in stages]
    given = [
        words(stage, run.out, f"guards.first_batch={tried}")
        for stage, pair in zip(stages, pairs, strict=True)
        for tried, run in zip(("true", "false"), pair, strict=True)
    ]
    ends = on_ranks(2, train_each, indexed.config, given, None, timeout_s=LIMIT_S)
    for number, said in enumerate(ends[0]):
        told = [line for line in said if line.startswith("first batch: 4 samples of up to")]
        assert len(told) == (number + 1) % 2, said
    for tried, untried in pairs:
        assert largest_difference(tried.routers(), untried.routers()) == 0


def short_of_memory(world: World, config: Path, given: list[str]) -> tuple[int, str]:
    from roma_ds.training.engine import MOMENTS, RouterEngine

    def full(self: Any, batch: Any) -> Any:
        held = [self.adamw.state[tensor] for tensor in self._optimized_tensors()]
        assert held and all(name in state for state in held for name in MOMENTS), "part of what must fit"
        raise MemoryError("no room for the attention scores")

    RouterEngine.forward = full  # type: ignore[method-assign]
    with pytest.raises(RomaError) as raised:
        run_stages(world, config, given, "train")
    return raised.value.exit_code, str(raised.value)


def test_memory_that_does_not_suffice_shows_before_training(indexed: Project, tmp_path: Path) -> None:
    run = indexed.copied(tmp_path / "out")
    for code, text in on_ranks(2, short_of_memory, indexed.config, words(0, run.out), timeout_s=LIMIT_S):
        assert code == 3
        assert "the first batch (4 samples of up to" in text and "train.micro_batch" in text
    assert not (run.out / "train" / "metrics.jsonl").exists()


def taken(shrinking: Iterator[int], folder: Path) -> int:
    """What is free at the next look."""
    return next(shrinking)


def fill_the_disk(world: World, config: Path, runs: dict[str, list[str]]) -> dict[str, tuple[int, bool, str]]:
    """Train with a disk that has no room at the start, is full in the second save, or fills up by step 5."""
    from roma_ds.training import checkpoints
    from roma_ds.training.state import StateWriter

    add, free = StateWriter.add, checkpoints.free_bytes
    ends = {}
    for kind, given in runs.items():
        written = 0

        def full(self: Any, key: str, array: Any) -> None:
            nonlocal written
            written += 1
            if written > 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            add(self, key, array)

        StateWriter.add = full if kind == "full" else add  # type: ignore[method-assign]
        shrinking = itertools.chain([2**40] * 4, itertools.repeat(2**20))
        checkpoints.free_bytes = partial(taken, shrinking) if kind == "fills up" else free
        with pytest.raises(RomaError) as raised:
            run_stages(world, config, given, "train")
        ends[kind] = raised.value.exit_code, raised.value.agreed, str(raised.value)
    return ends


def test_a_disk_without_room_loses_nothing(indexed: Project, tmp_path: Path) -> None:
    runs = {kind: indexed.copied(tmp_path / kind) for kind in ("no room", "full", "fills up")}
    given = {kind: words(0, run.out) for kind, run in runs.items()}
    given["no room"] += ["guards.free_disk=1.0e9"]
    ends = on_ranks(2, fill_the_disk, indexed.config, given, timeout_s=LIMIT_S)
    for kind, said in (
        ("no room", "training, for 4 resume states, needs"),
        ("full", "the disk is full"),
        ("fills up", "stopped after step 5 of 8, which is saved"),
    ):
        for code, agreed, text in (end[kind] for end in ends):
            assert (code, agreed) == (3, True) and said in text, text
    states = {kind: sorted(p.name for p in (run.out / "train").glob("state/*")) for kind, run in runs.items()}
    assert states == {"no room": [], "full": ["step-3"], "fills up": ["step-3", "step-5"]}
    again = [words(0, run.out, "guards.free_disk=0") for run in runs.values()]
    ends = on_ranks(2, train_each, indexed.config, again, None, timeout_s=LIMIT_S)
    assert ["resumed after step 3 of 8" in said for said in ends[0]] == [False, True, False]
    assert "resumed after step 5 of 8" in ends[0][2]
    for run in runs.values():
        assert largest_difference(run.routers(), runs["no room"].routers()) == 0
