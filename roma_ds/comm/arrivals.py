"""Who came, when an exchange between ranks broke off: asked in the store through which the ranks met."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

_SIGNS = ("timed out waiting", "collective operation timeout", "wait timeout")
STORE_ANSWERS_WITHIN_S = 5.0
MEETING_LOOKS_S = 0.2


@dataclass
class Place:
    """Where in the run this rank is, for messages."""

    stage: str = "start"
    step: int | None = None
    """optimizer step from 1; None outside training"""

    def __str__(self) -> str:
        return self.stage if self.step is None else f"{self.stage}, step {self.step}"


def waited_in_vain(error: Exception) -> bool:
    """Whether `error` says that other ranks did not come to an exchange within its time."""
    text = str(error).lower()
    return isinstance(error, RuntimeError | dist.DistError) and any(sign in text for sign in _SIGNS)


@dataclass(frozen=True)
class RollCall:
    """What the ranks found that were left when an exchange broke off."""

    reached: bool
    """False where the store of rank 0 cannot be reached"""
    present: Sequence[int] = ()
    absent: Sequence[str] = ()
    """Each as `rank 3 (host node2)`"""

    def text(self) -> str:
        """The absent ones in words."""
        if not self.reached:
            return "rank 0 (or the network on the way to it) does not answer"
        return f"{', '.join(self.absent)} did not come" if self.absent else "every rank is still there"


def announce(rank: int) -> None:
    """Tell the others on which host this rank runs."""
    _store().set(f"roma_ds/host/{rank}", socket.gethostname())


def meet(rank: int, size: int, name: str) -> None:
    """Wait until every rank is here, for longer than an exchange would: each works on its own before.

    name: its own for every meeting. A lost rank is not seen here: that is for `watched`.
    """
    if size == 1:
        return
    store = _store()
    store.set(f"roma_ds/met/{name}/{rank}", "")
    while not store.check([f"roma_ds/met/{name}/{other}" for other in range(size)]):
        time.sleep(MEETING_LOOKS_S)


def call_roll(rank: int, size: int, wait_s: float) -> RollCall:
    """Say that this rank is there, and find who else is within `wait_s` seconds.

    Every rank that is left calls it, since an exchange breaks off on all of them.
    """
    found = _Search(rank, size, wait_s)
    # The store cannot be told to give up: without a network a call of it does not return.
    thread = threading.Thread(target=found.run, daemon=True)
    thread.start()
    thread.join(wait_s + STORE_ANSWERS_WITHIN_S)
    return found.result


@dataclass
class _Search:
    rank: int
    size: int
    wait_s: float
    result: RollCall = field(default_factory=lambda: RollCall(False))

    def run(self) -> None:
        with contextlib.suppress(RuntimeError, dist.DistError):
            self._look()

    def _look(self) -> None:
        store = _store()
        store.set(f"roma_ds/there/{self.rank}", "")
        deadline = time.monotonic() + self.wait_s
        missing = [rank for rank in range(self.size) if rank != self.rank]
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"roma_ds/there/{rank}"])]
            time.sleep(0.05)
        present = [rank for rank in range(self.size) if rank not in missing]
        self.result = RollCall(True, present, [_named(store, rank) for rank in missing])


def _named(store: Any, rank: int) -> str:
    key = f"roma_ds/host/{rank}"
    host = store.get(key).decode() if store.check([key]) else "unknown"
    return f"rank {rank} (host {host})"


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
