"""Ranks that are threads of this process, with a transport's real checks: many programs in little time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from roma_ds.comm.transport import Exchange, Transport
from roma_ds.comm.wire import Bytes, Integers


class ThreadWire:
    """See Wire. Ranks read each other's arrays from one list."""

    most_rows = 2**62
    sleeps = True

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self._rank = rank
        self._board = board
        self._barrier = barrier

    def _all(self, mine: Any) -> Sequence[Any]:
        self._board[self._rank] = mine
        self._barrier.wait()
        found = tuple(self._board)
        self._barrier.wait()
        return found

    def headers(self, mine: Integers) -> Integers:
        """See Wire."""
        return np.stack(self._all(mine))

    def all_gather(self, rows: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire."""
        whole = self._all(rows)
        received[:] = np.concatenate(whole)
        self._barrier.wait()

    def all_to_all(self, sent: Bytes, received: Bytes, counts: Integers, width: int) -> None:
        """See Wire."""
        starts = (np.cumsum(counts, axis=1) - counts) * width
        parts = [
            whole[start : start + count * width]
            for whole, start, count in zip(
                self._all(sent), starts[:, self._rank], counts[:, self._rank], strict=True
            )
        ]
        received[:] = np.concatenate(parts)
        self._barrier.wait()

    def close(self) -> None:
        """See Wire."""


def on_threads(size: int, body: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> list[Any]:
    """Call `body(transport, *arguments)` on `size` threads; returns results in rank order.

    Raises what the lowest rank raised that was not merely left alone by another.
    """
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=timeout_s)
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        transport: Transport = Exchange(rank, size, ThreadWire(rank, board, barrier) if size > 1 else None)
        try:
            results[rank] = body(transport, *arguments)
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            errors[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    own = [
        errors[rank] for rank in sorted(errors) if not isinstance(errors[rank], threading.BrokenBarrierError)
    ]
    for error in [*own, *errors.values()]:
        raise error
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"ranks still at work after {timeout_s:g} s")
    return results
