"""Exchanges of the index that run while the training computes, in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")
_Errand = tuple[Callable[[], object], "Future[object]"]


class Courier:
    """One thread, so that all ranks make their exchanges in one order, however their training goes.

    What it is sent for must not change what the training reads meanwhile, nor the other way round.
    """

    def __init__(self, beside: bool) -> None:
        """beside: False runs every errand at once, in the caller's thread."""
        self._errands: SimpleQueue[_Errand | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="index", daemon=True) if beside else None
        if self._thread is not None:
            self._thread.start()

    def send(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Begin `work` when all that was sent before is done; what is returned waits for it.

        That also raises what `work` raised.
        """
        if self._thread is None:
            found = work()
            return lambda: found
        future: Future[Result] = Future()
        self._errands.put((work, future))  # type: ignore[arg-type]
        return future.result

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            work, future = errand
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
                future.set_exception(error)

    def close(self) -> None:
        """Wait for what was sent, and end the thread."""
        if self._thread is not None:
            self._errands.put(None)
            self._thread.join()
