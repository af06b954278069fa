"""What others hang on the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class LogEntry:
    """One log step."""

    metrics: Metrics
    """An object of metrics.jsonl."""
    load: torch.Tensor
    """float32 [chosen layers, experts], share of token choices per expert, mean over ranks"""
    layers: tuple[int, ...]
    steps: int


class Callback(Protocol):
    """Called on rank 0 only; must not communicate with other ranks."""

    def on_start(self, first_step: int) -> None:
        """Before the first step; `first_step` updates are already done."""

    def on_log(self, entry: LogEntry) -> None:
        """After each log step."""
