"""Bytes between ranks over a gloo process group of its own, whatever backend the default group has.

With a group of its own, the index's collectives cannot be mistaken for those of the training engine, and
host arrays need no accelerator.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from roma_ds.comm.wire import Bytes, Integers
from roma_ds.comm.world import World
from roma_ds.errors import EnvironmentFault


class GlooWire:
    """See Wire."""

    most_rows = sys.maxsize
    sleeps = True

    def __init__(self, group: Any, rank: int, size: int) -> None:
        self._group = group
        self._rank = rank
        self._size = size

    def headers(self, mine: Integers) -> Integers:
        """See Wire."""
        found = torch.empty((self._size, len(mine)), dtype=torch.int64)
        dist.all_gather(list(found), torch.from_numpy(mine), group=self._group)
        return found.numpy()

    def all_gather(self, rows: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire. As gloo's all_gather wants equal lengths, this is an all-to-all of the same rows."""
        copies = np.tile(rows, self._size)
        self._deal(copies, received, counts * width, np.full(self._size, len(rows)))

    def all_to_all(self, sent: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire."""
        self._deal(sent, received, counts[:, self._rank] * width, counts[self._rank] * width)

    def _deal(self, sent: Bytes, received: Bytes, incoming: Integers, outgoing: Integers) -> None:
        dist.all_to_all_single(
            torch.from_numpy(received),
            torch.from_numpy(sent),
            incoming.tolist(),
            outgoing.tolist(),
            group=self._group,
        )

    def close(self) -> None:
        """See Wire. The World may have left first, which ends all groups."""
        if dist.is_initialized():
            dist.destroy_process_group(self._group)


def open_gloo(world: World, timeout: timedelta | None) -> GlooWire:
    """A wire of its own group. A collective. Raises EnvironmentFault when ranks do not find each other."""
    try:
        group = dist.new_group(backend="gloo", timeout=timeout)
    except RuntimeError as error:
        raise EnvironmentFault(
            f"rank {world.rank} of {world.size} could not open a gloo group: {error}",
            "set GLOO_SOCKET_IFNAME to the network interface that connects the hosts",
        ) from error
    return GlooWire(group, world.rank, world.size)
