"""The one door to collectives: every exchange between ranks goes through a `World`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from roma_ds.comm.arrivals import Place, announce
from roma_ds.comm.build_lock import outlive_killed_builders
from roma_ds.comm.ranks import Ranks, ranks_from
from roma_ds.errors import EnvironmentFault
from roma_ds.storage.shared_buffers import forget_shared_buffers

Operation = Literal["sum", "min", "max"]
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


@dataclass(frozen=True)
class World:
    """The ranks of this run. Every method but the properties, `share` and `at` is a collective: all ranks
    must call it."""

    ranks: Ranks
    device: torch.device
    place: Place = field(default_factory=Place, compare=False)
    """Where in the run this rank is"""

    @property
    def rank(self) -> int:
        """This process's rank, 0 to size - 1."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.ranks.world_size

    @property
    def is_first(self) -> bool:
        """True on rank 0, which alone writes files and prints."""
        return self.ranks.rank == 0

    def share(self, count: int) -> range:
        """Rows of `count` that this rank works on: rank, rank + size, ... No exchange."""
        return range(self.rank, count, self.size)

    def at(self, stage: str, step: int | None = None) -> None:
        """Note where this rank is, for the message when others do not come. No exchange."""
        self.place.stage, self.place.step = stage, step

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def reduce(self, values: torch.Tensor, operation: Operation = "sum") -> torch.Tensor:
        """`values` combined over ranks, on every rank; same shape and dtype on all of them."""
        if self.size == 1:
            return values
        result = values.detach().clone().to(self.device)
        dist.all_reduce(result, op=_OPERATIONS[operation])
        return result

    def gather_objects(self, item: Any) -> list[Any]:
        """`item` of every rank in rank order, on every rank. For small objects and arrays."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def gather_to_first(self, item: Any) -> list[Any] | None:
        """`item` of every rank in rank order, on rank 0; None elsewhere. For larger arrays."""
        if self.size == 1:
            return [item]
        items: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(item, items, dst=0)
        return items

    def from_first(self, item: Any) -> Any:
        """Rank 0's `item` on every rank."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the process group.

        A process on its own keeps its group: DeepSpeed remembers it, and a second run in the same process
        would find it gone.
        """
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _device(ranks: Ranks) -> torch.device:
    if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cpu")


def start_world(rendezvous: Path | None = None, timeout: timedelta | None = None) -> World:
    """Join the process group that the launcher describes, through `deepspeed.init_distributed`.

    A process on its own, or a test with `rendezvous` (a file that all ranks share), needs no port.
    timeout: how long a rank waits for the others, here and in every exchange of every group that is made
    later; None is what DeepSpeed and torch do.
    Raises EnvironmentFault when the ranks do not find each other.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    outlive_killed_builders()

    ranks = ranks_from()
    device = _device(ranks)
    # DeepSpeed asserts that a launcher set this, also for a process on its own.
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.local_world_size))
    if timeout is not None:
        _wait_at_most(timeout)
    if not dist.is_initialized():
        if ranks.world_size == 1 and rendezvous is None:
            rendezvous = Path(tempfile.mkdtemp(prefix="roma_ds_")) / "rendezvous"
        method = f"file://{rendezvous}" if rendezvous is not None else None
        try:
            deepspeed.init_distributed(
                dist_backend="nccl" if device.type == "cuda" else "gloo",
                auto_mpi_discovery=False,
                verbose=False,
                init_method=method,
                rank=ranks.rank if method else -1,
                world_size=ranks.world_size if method else -1,
                **({"timeout": timeout} if timeout else {}),
            )
        except (RuntimeError, ValueError, dist.DistError) as error:
            raise EnvironmentFault(
                f"rank {ranks.rank} of {ranks.world_size} could not join the others: {error}",
                "check MASTER_ADDR and MASTER_PORT, and that all ranks were started",
            ) from error
    world = World(ranks, device)
    if ranks.world_size > 1:
        announce(ranks.rank)
    _forget_shared_buffers(world)
    return world


def _wait_at_most(timeout: timedelta) -> None:
    """For groups that DeepSpeed makes, which names no timeout: torch's default is that of these variables."""
    from torch.distributed import distributed_c10d

    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = timeout


def _forget_shared_buffers(world: World) -> None:
    """Once every rank has mapped them, the names of DeepSpeed's buffers serve nobody."""
    world.barrier()
    forget_shared_buffers(*(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")))
