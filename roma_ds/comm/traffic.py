"""What DeepSpeed's exchanges gather on this rank, and how long the rank waits in them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

GATHERS = {"all_gather_into_tensor": 0, "all_gather": 0, "all_gather_coalesced": 0}
"""DeepSpeed's gathers, and which argument receives."""
OTHERS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast", "barrier")


@dataclass
class Traffic:
    """Counts since `watch`, of this rank.

    Waiting is what the host waits: on an accelerator exchanges run beside it, and most of it is not seen.
    """

    gathered_bytes: int = 0
    """Received by gathers, this rank's own part included"""
    waited_s: float = 0.0

    def watch(self) -> Traffic:
        """Count what DeepSpeed's backend does from now on; nothing where there is no backend."""
        from deepspeed.comm import comm

        backend = comm.cdb
        for name in (*GATHERS, *OTHERS):
            original = getattr(backend, name, None)
            if original is not None:
                setattr(backend, name, self._counted(_uncounted(original), GATHERS.get(name)))
        return self

    def timed(self, call: Callable[[], Any]) -> Any:
        """Run `call` and count its time as waiting."""
        started = time.perf_counter()
        try:
            return call()
        finally:
            self.waited_s += time.perf_counter() - started

    def _counted(self, original: Callable[..., Any], received: int | None) -> Callable[..., Any]:
        @functools.wraps(original)
        def exchange(*given: Any, **named: Any) -> Any:
            if received is not None:
                target = given[received] if given else next(iter(named.values()))
                self.gathered_bytes += _bytes(target)
            handle = self.timed(lambda: original(*given, **named))
            return _Handle(handle, self) if hasattr(handle, "wait") else handle

        exchange.original = original  # type: ignore[attr-defined]
        return exchange


class _Handle:
    """An exchange under way, whose `wait` is timed."""

    def __init__(self, handle: Any, traffic: Traffic) -> None:
        self._handle = handle
        self._traffic = traffic

    def wait(self, *given: Any, **named: Any) -> Any:
        return self._traffic.timed(lambda: self._handle.wait(*given, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _uncounted(exchange: Callable[..., Any]) -> Callable[..., Any]:
    """Without the counting of an earlier training."""
    found: Callable[..., Any] = getattr(exchange, "original", exchange)
    return found


def _bytes(target: torch.Tensor | Iterable[torch.Tensor]) -> int:
    tensors = [target] if isinstance(target, torch.Tensor) else target
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
