"""What a rank does around its stages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roma_ds.errors import Interrupted, UserError, error_for
from roma_ds.pipeline import worker
from roma_ds.training.interruption import STOPPING, Interruption


def test_networks_are_released_before_what_follows_in_the_same_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    told = {"from_first": lambda found: "as rank 0 found", "close": lambda: done.append("closed")}
    world: Any = SimpleNamespace(size=1, is_first=False, **told)

    class Session:
        def __init__(self, *given: Any) -> None:
            self.folders, self.run, self.whole = SimpleNamespace(is_described=False), given[1], None

        def describe(self) -> None:
            done.append("described")

        def release_frozen(self) -> None:
            done.append("released")

    silent = SimpleNamespace(listen=lambda: None)
    monkeypatch.setattr("roma_ds.training.interruption.Interruption", lambda: silent)
    monkeypatch.setattr("roma_ds.comm.start_world", lambda timeout: world)
    monkeypatch.setattr("roma_ds.comm.agreement", nullcontext)
    monkeypatch.setattr("roma_ds.pipeline.session.Session", Session)
    monkeypatch.setattr(worker, "resolve_deepspeed", lambda run, size: {})
    monkeypatch.setattr("roma_ds.pipeline.base_only.is_base_only", lambda *given: False)
    monkeypatch.setattr(
        "roma_ds.pipeline.acceptance.accept", lambda *given: done.append(f"embeds {given[3]}")
    )
    monkeypatch.setattr("roma_ds.pipeline.acceptance.accept_data", lambda *given: done.append("accepted"))
    monkeypatch.setattr("roma_ds.pipeline.measuring.try_judges", lambda session: done.append("judged"))
    for stage in ("data", "embed", "collect", "index", "train", "eval"):
        module = "evaluating" if stage == "eval" else "stages"
        monkeypatch.setattr(
            f"roma_ds.pipeline.{module}.{stage}_stage",
            lambda session, *more, stage=stage: done.append(stage),
        )
    monkeypatch.setattr(worker, "trained_variants", lambda run, variant: ())
    monkeypatch.setattr(worker, "evaluated_variants", lambda run, variant: ())
    run: Any = SimpleNamespace(
        train=SimpleNamespace(seed=0), guards=SimpleNamespace(collective_timeout=9.0, lost_after=None)
    )
    worker.run_stages(run, "eval", None)
    assert done[:6] == ["embeds as rank 0 found", "data", "accepted", "described", "judged", "embed"]
    assert done[-4:] == ["eval", "described", "released", "closed"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_used_up_memory_is_a_fault_of_the_environment(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "load_for", lambda *given: None)
    monkeypatch.setattr(worker, "run_stages", fail)
    assert worker.main(["--config", "run.yaml"]) == 3
    said = capsys.readouterr().err
    assert "error: not enough memory: " in said and "train.micro_batch" in said and "Traceback" not in said


@pytest.mark.parametrize(("rank", "asked"), [("0", True), ("1", False)])
def test_slurms_signal_asks_for_another_turn_once(
    rank: str, asked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any) -> None:
        raise Interrupted(signal.SIGUSR1, "stopped after step 8 of 64, which is saved")

    place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_SIZE": "2"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worker, "load_for", lambda *given: None)
    monkeypatch.setattr(worker, "run_stages", stopped)
    monkeypatch.setattr("roma_ds.pipeline.ending.requeue", lambda: "job 5 is requeued")
    assert worker.main(["--config", "run.yaml"]) == 138
    said = capsys.readouterr().err
    assert ("stopped after step 8 of 64, which is saved\n  fix: job 5 is requeued" in said) == asked, said


def test_any_of_the_three_signals_is_remembered_while_training_defers_it() -> None:
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        interruption = Interruption().listen()
        for signum in STOPPING:
            interruption.signum = 0
            with pytest.raises(Interrupted) as late, interruption.defer():
                os.kill(os.getpid(), signum)
                assert interruption.signum == signum, "the block goes on"
            assert late.value.signum == signum, "what the loop did not look at is not forgotten"
            interruption.signum = 0
            with interruption.defer():
                pass
            with pytest.raises(Interrupted) as raised:
                os.kill(os.getpid(), signum)
            assert raised.value.exit_code == 128 + signum
            assert isinstance(error_for(128 + signum, "stopped", None), Interrupted)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_launchers_signal_does_not_take_the_place_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank ends first, and the launcher's SIGTERM comes while this one still leaves."""
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    run = SimpleNamespace(guards=SimpleNamespace(collective_timeout=1.0, lost_after=None))

    @contextmanager
    def leaving(world: Any, after_s: Any) -> Iterator[None]:
        try:
            yield
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def wrong(*given: Any) -> None:
        raise UserError("roma.layers is last9", "name fewer")

    monkeypatch.setattr("roma_ds.comm.start_world", lambda timeout: SimpleNamespace(size=1))
    monkeypatch.setattr("roma_ds.comm.watch.watched", leaving)
    monkeypatch.setattr("roma_ds.network.release.keep_large_blocks_apart", lambda: None)
    monkeypatch.setattr(worker, "calm_libraries", lambda: None)
    monkeypatch.setattr(worker, "_run_on", wrong)
    try:
        with pytest.raises(UserError, match="last9"):
            worker.run_stages(run, "report", None)  # type: ignore[arg-type]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
