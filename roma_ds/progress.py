"""Progress of long work: a bar with ETA on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Counts `total` units of work under `title`; silent when `enabled` is False (ranks other than 0)."""

    plain_interval_s = 5.0

    def __init__(self, total: int, title: str, unit: str = "samples", enabled: bool = True) -> None:
        self.total, self.title, self.unit, self.enabled = total, title, unit, enabled
        self.done = 0
        self.started = self.last_line = time.monotonic()
        self.terminal = enabled and sys.stderr.isatty()

    def advance(self, count: int = 1) -> None:
        """Add `count` finished units and redraw when it is time."""
        self.done += count
        now = time.monotonic()
        if self.enabled and now - self.last_line >= (0.1 if self.terminal else self.plain_interval_s):
            self.last_line = now
            self._draw()

    def _draw(self, end: str | None = None) -> None:
        elapsed = time.monotonic() - self.started
        share = self.done / self.total if self.total else 1.0
        left = elapsed * (1 - share) / share if share else 0.0
        timing = f"{elapsed:.0f} s" if share >= 1 else f"{elapsed:.0f} s, about {left:.0f} s left"
        text = f"{self.title}: {self.done}/{self.total} {self.unit} ({timing})"
        if self.terminal:
            filled = int(24 * share)
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\x1b[K{end or ''}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._draw(end="\n")
