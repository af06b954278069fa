"""What the ranks gather and wait, counted on each and told to all."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from roma_ds.comm import World
from roma_ds.comm.traffic import Traffic
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.training.rank_window import Window
from roma_ds.training.step import StepSums

LATE_S = 0.8


def exchange(world: World) -> dict[str, Any]:
    import deepspeed.comm as comm

    # Counted once, though two trainings ran in this process.
    Traffic().watch()
    traffic = Traffic().watch()
    window = Window(traffic)
    parts, mine = torch.empty(world.size * 100), torch.full((100,), float(world.rank))
    comm.all_gather_into_tensor(parts, mine)
    handle = comm.all_gather_into_tensor(parts, mine, async_op=True)
    handle.wait()
    comm.all_gather(
        [torch.empty(50, dtype=torch.float64) for _ in range(world.size)], torch.ones(50).double()
    )
    comm.all_reduce(mine)
    gathered = traffic.gathered_bytes
    if world.rank == 1:
        time.sleep(LATE_S)
    comm.barrier()
    tokens = 100 * (world.rank + 1)
    for _ in range(2):
        window.add(StepSums(task=1.0 + world.rank, correct=1, samples=4, tokens=tokens, micro_batches=1))
    table = window.exchange(world, (2, 3))
    return {
        "values": parts.tolist(),
        "gathered": gathered,
        "waited": traffic.waited_s,
        "tasks": table.total("task"),
        "samples": table.total("samples"),
        "load": table.load.tolist(),
        "facts": table.facts(),
    }


def test_ranks_are_told_apart() -> None:
    found = on_ranks(3, exchange, timeout_s=250)
    first = found[0]
    assert first["values"] == [float(rank) for rank in range(3) for _ in range(100)]
    assert [rank["gathered"] for rank in found] == [3 * (100 * 4 + 100 * 4 + 50 * 8)] * 3
    assert found[0]["waited"] > LATE_S / 2 > found[1]["waited"] / 2
    assert first["tasks"] == 2 * (1 + 2 + 3)
    assert first["samples"] == 24
    assert first["load"] == [[0.0] * 3] * 2
    facts = first["facts"]
    assert all(rank["facts"] == facts for rank in found)
    assert facts["slowest_rank"] == 1
    assert facts["straggler_gap"] == pytest.approx(LATE_S / 2, abs=0.3), "of two steps"
    assert facts["gathered_bytes"] == 3600 / 2
    speeds = facts["ranks"]["tokens_per_second"]
    assert speeds[1] / speeds[0] == pytest.approx(2, rel=0.2)
    assert all(memory > 10**7 for memory in facts["ranks"]["memory_bytes"])
    assert all(0 <= share <= 1 for share in facts["ranks"]["busy"])
