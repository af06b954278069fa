from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks, ranks_from
from roma_ds.errors import EnvironmentFault
from roma_ds.testing.local_ranks import RankFailed, on_ranks


def every_exchange(world: World) -> dict[str, Any]:
    mine = torch.tensor([world.rank + 1.0, -world.rank])
    kept = mine.clone()
    found: dict[str, Any] = {
        "rank": (world.rank, world.size, world.is_first),
        "share": [list(world.share(count)) for count in (0, 1, 5, 12)],
        "sum": world.reduce(mine).tolist(),
        "min": world.reduce(mine, "min").tolist(),
        "max": world.reduce(mine, "max").tolist(),
        "integers": world.reduce(torch.tensor([2**40 + world.rank])).tolist(),
        "doubles": world.reduce(torch.tensor([1e-9, 1.0], dtype=torch.float64)).tolist(),
        "unchanged": bool(torch.equal(mine, kept)),
        "gathered": world.gather_objects({"rank": world.rank, "rows": ["x"] * world.rank}),
        "from_first": world.from_first(f"of {world.rank}"),
    }
    arrays = world.gather_to_first(np.full((world.rank, 2), world.rank, np.float32))
    found["to_first"] = None if arrays is None else [array.shape for array in arrays]
    world.barrier()
    found["environment"] = os.environ["RANK"]
    found["large"] = np.full(2_000_000, world.rank, np.float32)
    return found


def shared_buffers() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")}


def test_no_shared_memory_is_left_behind() -> None:
    """DeepSpeed's buffers have names in /dev/shm; with them left there, some hundred runs fill the memory."""
    before = shared_buffers()
    assert on_ranks(2, own_rank) == [0, 1]
    left, deadline = shared_buffers() - before, time.monotonic() + 10
    # Ranks of another test have names there for a moment.
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= shared_buffers()
    assert not left


def own_rank(world: World) -> int:
    return world.rank


def test_exchanges() -> None:
    size = 3
    results = on_ranks(size, every_exchange, timeout_s=200)
    total = size * (size + 1) / 2
    for rank, found in enumerate(results):
        assert found["rank"] == (rank, size, rank == 0)
        assert found["sum"] == [total, size - total]
        assert found["min"] == [1.0, 1.0 - size]
        assert found["max"] == [size, 0.0]
        assert found["integers"] == [size * 2**40 + size * (size - 1) // 2]
        assert found["doubles"] == [size * 1e-9, size]
        assert found["unchanged"], "reduce leaves its argument as it was"
        assert found["gathered"] == [{"rank": r, "rows": ["x"] * r} for r in range(size)]
        assert found["from_first"] == "of 0"
        assert found["to_first"] == ([(r, 2) for r in range(size)] if rank == 0 else None)
        assert found["environment"] == str(rank)
        assert float(found["large"].mean()) == rank, "a result larger than a pipe holds"
    for place, count in enumerate((0, 1, 5, 12)):
        shares = [found["share"][place] for found in results]
        assert sorted(row for share in shares for row in share) == list(range(count)), "each row on one rank"
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_on_its_own_needs_no_exchange() -> None:
    world = World(Ranks(), torch.device("cpu"))
    assert list(world.share(4)) == [0, 1, 2, 3]
    assert world.gather_objects("x") == world.gather_to_first("x") == ["x"]
    assert world.from_first("x") == "x"
    assert world.reduce(torch.tensor([3.0]), "min").tolist() == [3.0]
    world.barrier()


def sleeper(world: World) -> None:
    time.sleep(600)


THREADS = """
from roma_ds.comm.world import start_world
import torch
start_world()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("given", [None, "1"])
def test_a_rank_takes_its_share_of_the_cores_unless_it_is_told_a_number(given: str | None) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    environment.pop("OMP_NUM_THREADS", None)
    if given is not None:
        environment["OMP_NUM_THREADS"] = given
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split()[-1:] == [given or str(os.cpu_count())], done


def test_ranks_that_do_not_end_are_ended() -> None:
    started = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        on_ranks(2, sleeper, timeout_s=2)
    assert time.monotonic() - started < 30
    assert caught.value.codes == {0: -signal.SIGKILL, 1: -signal.SIGKILL}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, Ranks()),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Ranks(3, 4, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Ranks(1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(1, 2, 1, 2)),
    ],
)
def test_ranks_from_the_variables_of_launchers(environment: dict[str, str], wanted: Ranks) -> None:
    assert ranks_from(environment) == wanted


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "two", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_variables_that_contradict_each_other(environment: dict[str, str]) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        ranks_from(environment)
    assert caught.value.exit_code == 3
    assert caught.value.fix
