"""Signals end a run at a step's end, on all ranks together, after its state is saved.

SIGINT and SIGTERM ask for it; SIGUSR1 is what Slurm is told to send before a job's time is up.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from roma_ds.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Remembers a signal while training defers it; raises Interrupted at once otherwise."""

    def __init__(self) -> None:
        self.signum = 0
        self.deferred = False

    def listen(self) -> Interruption:
        """Install the handlers in this process."""
        for signum in STOPPING:
            signal.signal(signum, self._handle)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # A launcher often follows the terminal's SIGINT by SIGTERM: the first one names the exit code.
        first = not self.signum
        self.signum = self.signum or signum
        if first and not self.deferred:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        """Inside, signals only leave a mark that the training loop looks at between steps.

        One that the loop did not look at any more raises Interrupted at the end.
        """
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False
        if self.signum:
            raise Interrupted(self.signum)
