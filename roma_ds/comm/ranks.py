"""Which rank this process is, from the variables that a launcher sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from roma_ds.errors import EnvironmentFault


@dataclass(frozen=True)
class Ranks:
    """Position of this process: `rank` of `world_size`, `local_rank` on its host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def ranks_from(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Ranks from RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE (deepspeed) or LOCAL_WORLD_SIZE (torchrun).

    With none of them set this is one process on its own. Raises EnvironmentFault where only some
    are set or they contradict each other.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Ranks()
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", 0))
        local_size = int(environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or 1)
    except (KeyError, ValueError) as error:
        raise EnvironmentFault(
            f"RANK and WORLD_SIZE must both be set to numbers ({error})",
            "start through `roma-ds run --ranks N` or the deepspeed launcher",
        ) from error
    if not 0 <= rank < size:
        raise EnvironmentFault(f"RANK={rank} does not lie below WORLD_SIZE={size}", "check the launcher")
    return Ranks(rank, size, local_rank, local_size)
