"""A World whose ranks are threads, for what the index asks of one; see roma_ds/testing/thread_ranks.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks


@dataclass(frozen=True)
class ThreadWorld(World):
    """Exchanges objects over the transport's own wire; None on a rank alone."""

    wire: Any = None

    @classmethod
    def of(cls, transport: Any) -> ThreadWorld:
        ranks = Ranks(rank=transport.rank, world_size=transport.size)
        return cls(ranks, torch.device("cpu"), wire=transport._wire)

    def gather_objects(self, item: Any) -> list[Any]:
        return [item] if self.wire is None else list(self.wire._all(item))

    def from_first(self, item: Any) -> Any:
        return self.gather_objects(item)[0]

    def barrier(self) -> None:
        self.gather_objects(None)
