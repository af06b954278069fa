"""An exchange to which ranks do not come ends with a message that names the stage and those ranks."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from roma_ds.comm import World, absence, agreement
from roma_ds.comm.arrivals import meet
from roma_ds.comm.ranks import Ranks
from roma_ds.comm.world import _wait_at_most
from roma_ds.errors import EnvironmentFault, RomaError
from roma_ds.testing.local_ranks import RankFailed, on_ranks

WAITS_S = 1.5


def without_rank_one(world: World) -> tuple[int, bool, str] | None:
    """Every rank but 1 waits in a group that was made without a word about time, as DeepSpeed makes its."""
    absence.ROLL_CALL_S = 2.0
    _wait_at_most(timedelta(seconds=WAITS_S))
    group = dist.new_group()
    world.at("train roma", 7)
    if world.rank == 1:
        # Not gone: its sockets stay open until the others have looked for it.
        time.sleep(WAITS_S + absence.ROLL_CALL_S + 6)
        return None
    try:
        with absence.named_absence(world, WAITS_S):
            dist.all_reduce(torch.ones(1), group=group)
    except EnvironmentFault as fault:
        return fault.exit_code, fault.agreed, fault.message
    return None


def test_ranks_that_do_not_come_are_named_with_the_stage() -> None:
    first, late, third = on_ranks(3, without_rank_one)
    assert late is None
    missing = f"rank 1 (host {socket.gethostname()}) did not come"
    for rank, (code, said_elsewhere, text) in ((0, first), (2, third)):
        assert code == 3
        assert text.startswith(f"train roma, step 7: rank {rank} waited 1.5 s for the others"), text
        assert missing in text and text.count("(host") == 1, text
        assert said_elsewhere == (rank == 2), "one of the ranks that are left prints it"


def after_a_long_cell(world: World, fails: bool) -> tuple[float, str]:
    """Rank 1 works for longer than an exchange waits."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=WAITS_S))
    started = time.monotonic()
    try:
        with agreement(world):
            try:
                if world.rank == 1:
                    time.sleep(2 * WAITS_S)
                    if fails:
                        raise RomaError("the cell failed")
            finally:
                meet(world.rank, world.size, "cells 1")
    except RomaError as error:
        return time.monotonic() - started, error.message
    return time.monotonic() - started, "done"


@pytest.mark.parametrize("fails", [False, True])
def test_ranks_meet_after_work_that_takes_longer_than_an_exchange_waits(fails: bool) -> None:
    for seconds, said in on_ranks(3, after_a_long_cell, fails):
        assert seconds >= 2 * WAITS_S
        assert ("the cell failed" in said) if fails else said == "done"


def without_a_killed_rank(world: World, report: str) -> None:
    absence.LAUNCHER_LOOKS_WITHIN_S = 1.0
    world.at("collect")
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with absence.named_absence(world, 60.0):
            for _ in range(1000):
                world.barrier()
    except RomaError as error:
        with open(f"{report}/{world.rank}", "w") as file:
            file.write(f"{error.exit_code} {error.message}")


def test_a_rank_that_is_gone_is_named(tmp_path: Path) -> None:
    try:
        on_ranks(3, without_a_killed_rank, str(tmp_path))
    except RankFailed as failed:
        assert failed.codes[1] == -signal.SIGKILL
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(said) == {"0", "2"}
    for text in said.values():
        assert text.startswith("1 collect: another rank ended unexpectedly; rank 1 (host "), text


def test_other_errors_stay_what_they_are() -> None:
    world = World(Ranks(), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="size mismatch"), absence.named_absence(world, 1.0):
        raise RuntimeError("size mismatch")
