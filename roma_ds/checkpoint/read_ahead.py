"""Spans of a network one after the other, each read while the one before is at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.span import SpanLoader


class ReadAhead:
    """Networks by step, the next one being read while the one given out is at work."""

    def __init__(
        self, loader: Callable[[int, CheckpointFiles | None], SpanLoader], steps: Sequence[int]
    ) -> None:
        self._make, self._steps = loader, iter(steps)
        self._files: CheckpointFiles | None = None
        self._reader = ThreadPoolExecutor(1, "layer-reader")
        self._next: Future[Any] | None = None

    def __enter__(self) -> ReadAhead:
        self._start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def _start(self) -> None:
        step = next(self._steps, None)
        self._next = None
        if step is not None:
            # Here and not in the thread: see SpanLoader.
            loader = self._make(step, self._files)
            self._files = loader.files
            self._next = self._reader.submit(loader.load)

    def take(self) -> Any:
        """The next network; the caller has none of the earlier ones any more."""
        assert self._next is not None
        network = self._next.result()
        self._start()
        return network
