"""Who is there: every rank beats to rank 0, which answers; whoever falls silent is named by host and rank.

A collective cannot tell a slow rank from a lost one, so its timeout must be long. A thread of each process
beats, whatever the process computes: its silence means that the process, its host or the way there is gone.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from roma_ds.errors import RomaError

BEAT_S = 1.0
"""Between beats of a rank; a shorter limit shortens it."""
ENDED_GRACE_S = 20.0
"""What a process is given to end by its own error, once another rank ended."""
ENDED = "ended unexpectedly"
SILENT = "has not been heard of for {:g} s"


End = Callable[[RomaError, bool], None]


@dataclass
class Peer:
    """What is known of another rank: when it was last heard of, and whether it is gone."""

    rank: int
    heard: float
    gone: str = ""
    """Why it counts as lost, SILENT or ENDED; empty while it does not."""
    left: bool = False
    """True once it said that it was done."""
    buffer: bytes = b""


@dataclass
class Presence:
    """One rank's view. Made by `join`; `leave` before the process ends as planned.

    hosts: name of every rank's host. after_s: silence that counts as a loss. end: called with what to tell
    the user, and whether it is this rank that tells it, when ranks are lost and this process does not end by
    itself.
    """

    rank: int
    hosts: tuple[str, ...]
    after_s: float
    end: End
    peers: dict[int, Peer] = field(default_factory=dict)
    _leaving: threading.Event = field(default_factory=threading.Event)
    _end_at: float = math.inf
    _thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` beside this process."""
        self._thread = threading.Thread(target=work, name="presence", daemon=True)
        self._thread.start()

    @property
    def leaving(self) -> bool:
        """True once `leave` was called."""
        return self._leaving.is_set()

    @property
    def beat_s(self) -> float:
        """Seconds between beats."""
        return min(BEAT_S, self.after_s / 4)

    def leave(self) -> None:
        """Tell the others that this rank is done, so that its silence means nothing."""
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * self.beat_s + 1)

    def lost(self) -> dict[int, str]:
        """Why each lost rank counts as lost."""
        return {peer.rank: peer.gone for peer in self.peers.values() if peer.gone}

    def error(self, lost: Mapping[int, str]) -> RomaError:
        """What the user is told: each lost rank with its host and why."""
        parts = [f"rank {rank} (host {self.hosts[rank]}) {why}" for rank, why in sorted(lost.items())]
        shown = parts[:8] + ([f"and {len(parts) - 8} more"] if len(parts) > 8 else [])
        return RomaError(
            f"{'; '.join(shown)}; the last saved state is kept",
            "rerun the same command to go on, without the host if it is lost",
        )

    def look(self, now: float, paused_s: float) -> bool:
        """Judge all peers at `now`; whether it is time to end this process.

        paused_s: how long this thread was away. A process that was stopped or starved forgives the others
        once, as it cannot know whether they were silent.
        """
        for peer in self.peers.values():
            if paused_s > self.after_s / 2:
                peer.heard = now
            elif now - peer.heard > self.after_s:
                self.note(peer, SILENT.format(self.after_s))
        return now > self._end_at and not self.leaving

    def note(self, peer: Peer, why: str) -> None:
        """Count `peer` as lost, unless it is known to be or left as planned."""
        if not peer.gone and not peer.left:
            peer.gone = why
            self._end_at = min(self._end_at, time.monotonic() + (ENDED_GRACE_S if why == ENDED else 0.0))

    def speaks(self, lost: Mapping[int, str]) -> bool:
        """Whether this rank is the one of its host that tells the user: the lowest that is not lost."""
        mine = [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]
        return self.rank == min(rank for rank in mine if rank not in lost)

    def stop(self) -> None:
        """End this process over what was lost."""
        lost = self.lost()
        self.end(self.error(lost), self.speaks(lost))


def end_process(error: RomaError, tell: bool) -> None:
    """End at once: the main thread may be in a collective that never returns."""
    if tell:
        print(f"roma-ds: error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(error.exit_code)
