"""What the ranks did since the last log line, told to all of them in one exchange.

Shapes: R ranks, M chosen layers, E experts.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from roma_ds.comm import World
from roma_ds.comm.traffic import Traffic
from roma_ds.training.step import StepSums

SUMS = ("task", "manifold", "correct", "samples", "empty", "tokens", "micro_batches")
COUNTS = (*SUMS, "seconds", "waited", "gathered", "memory")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the accelerator, or resident on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class RankTable:
    """Sums over a window of steps, each with a value a rank."""

    counts: Mapping[str, torch.Tensor]
    """float64 [R] by the names in COUNTS"""
    load: torch.Tensor
    """float32 [M, E], sum over micro-batches and ranks of the experts' shares"""
    steps: int

    def total(self, name: str) -> float:
        """Over all ranks."""
        return float(self.counts[name].sum())

    def facts(self) -> dict[str, Any]:
        """Keys of metrics.jsonl that tell the ranks apart."""
        seconds, busy = self.counts["seconds"], self.counts["seconds"] - self.counts["waited"]
        return {
            "straggler_gap": float(busy.max() - busy.min()) / self.steps,
            "slowest_rank": int(busy.argmax()),
            "gathered_bytes": float(self.counts["gathered"].max()) / self.steps,
            "ranks": {
                "tokens_per_second": (self.counts["tokens"] / seconds).tolist(),
                "memory_bytes": [int(value) for value in self.counts["memory"].tolist()],
                "busy": (busy / seconds).tolist(),
            },
        }


@dataclass
class Window:
    """Sums since the last log line, on this rank."""

    traffic: Traffic
    sums: StepSums = field(default_factory=StepSums)
    steps: int = 0

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._waited, self._gathered = self.traffic.waited_s, self.traffic.gathered_bytes

    def add(self, step: StepSums) -> None:
        """Count one step."""
        self.steps += 1
        for name in SUMS:
            setattr(self.sums, name, getattr(self.sums, name) + getattr(step, name))
        if step.load is not None:
            self.sums.load = step.load if self.sums.load is None else self.sums.load + step.load

    def exchange(self, world: World, shape: tuple[int, int]) -> RankTable:
        """The sums of all ranks; shape: [M, E]. A collective."""
        row = [float(getattr(self.sums, name)) for name in SUMS]
        row += [
            max(time.monotonic() - self.started, 1e-9),
            self.traffic.waited_s - self._waited,
            float(self.traffic.gathered_bytes - self._gathered),
            float(peak_memory_bytes(world.device)),
        ]
        # Each rank fills its own row of zeros, so the sum is the table.
        table = torch.zeros(world.size, len(COUNTS), dtype=torch.float64)
        table[world.rank] = torch.tensor(row, dtype=torch.float64)
        load = self.sums.load.double().cpu() if self.sums.load is not None else torch.zeros(shape)
        told = world.reduce(torch.cat([table.flatten(), load.double().flatten()])).cpu()
        counts = told[: table.numel()].reshape(table.shape)
        return RankTable(
            {name: counts[:, place] for place, name in enumerate(COUNTS)},
            told[table.numel() :].reshape(shape).float(),
            max(1, self.steps),
        )
