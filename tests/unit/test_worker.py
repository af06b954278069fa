"""What a rank does around its stages."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roma_ds.pipeline import worker


def test_networks_are_released_before_what_follows_in_the_same_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    world: Any = SimpleNamespace(size=1, is_first=False, close=lambda: done.append("closed"))

    class Session:
        def __init__(self, *given: Any) -> None:
            self.folders = Path()

        def release_frozen(self) -> None:
            done.append("released")

    silent = SimpleNamespace(listen=lambda: None)
    monkeypatch.setattr("roma_ds.training.interruption.Interruption", lambda: silent)
    monkeypatch.setattr("roma_ds.comm.start_world", lambda timeout: world)
    monkeypatch.setattr("roma_ds.comm.agreement", nullcontext)
    monkeypatch.setattr("roma_ds.pipeline.session.Session", Session)
    monkeypatch.setattr(worker, "resolve_deepspeed", lambda run, size: {})
    for stage in ("data", "embed", "collect", "index", "train", "eval"):
        monkeypatch.setattr(
            f"roma_ds.pipeline.stages.{stage}_stage", lambda session, *more, stage=stage: done.append(stage)
        )
    monkeypatch.setattr(worker, "trained_variants", lambda run, variant: ())
    monkeypatch.setattr(worker, "evaluated_variants", lambda run, variant: ())
    run: Any = SimpleNamespace(train=SimpleNamespace(seed=0), guards=SimpleNamespace(collective_timeout=9.0))
    worker.run_stages(run, "eval", None)
    assert done[-3:] == ["eval", "released", "closed"]


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
