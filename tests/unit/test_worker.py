"""What a rank does around its stages."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
    monkeypatch.setattr("roma_ds.comm.start_world", lambda: world)
    monkeypatch.setattr("roma_ds.comm.agreement", nullcontext)
    monkeypatch.setattr("roma_ds.pipeline.session.Session", Session)
    monkeypatch.setattr(worker, "resolve_deepspeed", lambda run, size: {})
    for stage in ("data", "embed", "collect", "index", "train", "eval"):
        monkeypatch.setattr(
            f"roma_ds.pipeline.stages.{stage}_stage", lambda session, *more, stage=stage: done.append(stage)
        )
    monkeypatch.setattr(worker, "trained_variants", lambda run, variant: ())
    monkeypatch.setattr(worker, "evaluated_variants", lambda run, variant: ())
    run: Any = SimpleNamespace(train=SimpleNamespace(seed=0))
    worker.run_stages(run, "eval", None)
    assert done[-3:] == ["eval", "released", "closed"]
