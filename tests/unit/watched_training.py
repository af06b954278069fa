"""A log line of a training on two ranks, told to DeepSpeed's monitor by the training's own watcher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from roma_ds.pipeline.watchers import MonitorWatcher
from roma_ds.training.callbacks import LogEntry

SETTINGS = {"train.lr": 0.001, "roma.layers": "last5", "train.task_loss": True, "train.epochs": 3}
METRICS = {
    "step": 10, "epoch": 0.5, "loss": 1.5, "task_loss": 1.25, "manifold_loss": 0.5, "lambda": 0.5,
    "grad_norm_task": 2.0, "grad_norm_manifold": 4.0, "grad_norm": 3.0, "lr": 0.001, "accuracy": 0.75,
    "successful": 12, "index_epoch": 0, "empty_neighbourhoods": 1, "expert_load_entropy": 0.9,
    "tokens_per_second": 1000.0, "memory_bytes": 5000, "skipped_steps": 2, "straggler_gap": 0.25,
    "slowest_rank": 1, "gathered_bytes": 4096.0,
    "ranks": {"tokens_per_second": [600.0, 400.0], "memory_bytes": [4000, 5000], "busy": [0.5, 0.9]},
}  # fmt: skip


def watch(monitor: Any, **changed: Any) -> None:
    class Engine:
        engine = SimpleNamespace(monitor=monitor)

        def write_events(self, events: list[Any]) -> None:
            monitor.write_events(events)

    watcher = MonitorWatcher(Engine(), SETTINGS, {"config": "train:\n  lr: 0.001"})  # type: ignore[arg-type]
    watcher.on_start(0)
    load = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    watcher.on_log(LogEntry({**METRICS, **changed}, load, (2, 11), 100))
