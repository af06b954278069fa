"""Bytes between ranks over MPI, by mpi4py and host buffers; imported when a run asks for it.

Source of the limits: MPI's counts and displacements are C ints, so rows are a datatype of their own and only
their number must fit; large payloads go in rounds, each below what implementations are known to carry.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from roma_ds.comm.agreement import agreement
from roma_ds.comm.wire import Bytes, Integers
from roma_ds.comm.world import World
from roma_ds.errors import EnvironmentFault

ROUND_BYTES = 2**30
"""Most that a rank receives in one MPI call, unless one row from each rank is more."""

_TORCH = "set index.transport=torch"
_START = (
    "let MPI start the ranks: roma-ds run RUN.yaml -- --launcher mpirun --hostfile FILE, or mpirun with "
    f"`python -m roma_ds.train`, see docs/multi-node.md; or {_TORCH}"
)
# What starters set that speak for Open MPI, and for MPICH and its kin.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class MpiWire:
    """See Wire."""

    most_rows = 2**31 - 1
    sleeps = False
    """MPI libraries ask again and again while they wait, and not all may be called from another thread."""

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._communicator = mpi.COMM_WORLD.Dup()
        self._rank: int = self._communicator.Get_rank()
        self._size: int = self._communicator.Get_size()
        atexit.register(self._abandon)

    def headers(self, mine: Integers) -> Integers:
        """See Wire."""
        found = np.empty((self._size, len(mine)), np.int64)
        self._communicator.Allgather(mine, found)
        return found

    def all_gather(self, rows: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire."""
        starts = _starts(counts)
        row = self._row_type(width)
        for taken, lengths in self._rounds(counts, width):
            first, length = int(taken[self._rank]), int(lengths[self._rank])
            mine = rows[first * width : (first + length) * width]
            places = (lengths.tolist(), (starts + taken).tolist())
            self._communicator.Allgatherv([mine, length, row], [received, places, row])
        row.Free()

    def all_to_all(self, sent: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire."""
        sent_from, received_at = _starts(counts[self._rank]), _starts(counts[:, self._rank])
        row = self._row_type(width)
        for taken, lengths in self._rounds(counts, width):
            going = (lengths[self._rank].tolist(), (sent_from + taken[self._rank]).tolist())
            coming = (lengths[:, self._rank].tolist(), (received_at + taken[:, self._rank]).tolist())
            self._communicator.Alltoallv([sent, going, row], [received, coming, row])
        row.Free()

    def _row_type(self, width: int) -> Any:
        return self._mpi.BYTE.Create_contiguous(width).Commit()

    def _rounds(self, counts: Integers, width: int) -> list[tuple[Integers, Integers]]:
        """(rows taken before, rows now) of each round, shaped as `counts`; alike on all ranks."""
        piece = max(1, ROUND_BYTES // (width * self._size))
        starts = [np.minimum(counts, first) for first in range(0, int(counts.max()), piece)]
        return [(taken, np.minimum(counts - taken, piece)) for taken in starts]

    def close(self) -> None:
        """See Wire."""
        atexit.unregister(self._abandon)
        self._communicator.Free()

    def _abandon(self) -> None:
        """A process that ends with the wire open has failed: end the job, as MPI's own exit waits for all."""
        if not self._mpi.Is_finalized():
            print(
                f"roma-ds: rank {self._rank} ends with its MPI transport open; ending the other ranks too",
                file=sys.stderr,
                flush=True,
            )
            self._mpi.COMM_WORLD.Abort(1)


def _starts(counts: Integers) -> Integers:
    """Where each rank's rows begin."""
    starts: Integers = np.cumsum(counts) - counts
    return starts


def open_mpi(world: World) -> MpiWire:
    """A wire over a copy of MPI's COMM_WORLD. A collective. Raises EnvironmentFault on all ranks alike."""
    with agreement(world):
        mpi = _load()
        _check_same_ranks(mpi, world)
    return MpiWire(mpi)


def _load() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise EnvironmentFault(
            f"index.transport is mpi, and mpi4py cannot be imported ({error})",
            f"pip install 'roma_ds[mpi]', or {_TORCH}",
        ) from error
    except RuntimeError as error:
        # mpi4py is there, but no library of MPI, or one that does not start.
        raise EnvironmentFault(
            f"index.transport is mpi, and MPI does not start: {error}",
            f"install an MPI library (pip install 'roma_ds[mpi]' brings one), or {_TORCH}",
        ) from error
    return MPI


def _check_same_ranks(mpi: Any, world: World) -> None:
    """Raises EnvironmentFault unless this process has the same rank of as many in MPI as in `world`."""
    rank, size = mpi.COMM_WORLD.Get_rank(), mpi.COMM_WORLD.Get_size()
    if (rank, size) == (world.rank, world.size):
        return
    message = f"rank {world.rank} of {world.size} is rank {rank} of {size} in MPI's world"
    if size == 1:
        message += ": it was not started by MPI"
    raise EnvironmentFault(message, _START)


def check_alone(environment: Mapping[str, str] = os.environ) -> None:
    """Raises EnvironmentFault where MPI started several processes and each takes itself for a whole run.

    Looks at variables only: a process on its own needs no MPI.
    """
    size = next((environment[name] for name in _SIZES if name in environment), "1")
    if size != "1":
        raise EnvironmentFault(f"MPI started {size} processes, and each is a torch world of its own", _START)
