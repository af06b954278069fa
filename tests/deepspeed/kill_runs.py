"""Whole runs in the background of which a rank is to be killed, and where in a run they are."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from cli.projects import BIN, Project, Started, kill_tree

from roma_ds.testing.local_ranks import fork_server

RANKS = 2
START = "start"
PLACES = {
    "data": r"^data: ",
    "embed": r"^embed: ",
    "collect": r"^collect: ",
    "index": r"^index: ",
    "eval base": r"^eval(?: base)?: ",
    "train": r"^train roma: ",
    "steps and saves": r"^first batch: ",
    "eval": r"^eval roma: ",
    "export and report": r"^export: ",
}
"""What a run says when it comes there; from its start until the first of them it is in START."""
SETTINGS = (
    "train.save_every=1",
    "train.log_every=1",
    "collect.save_every=0.1",
    "roma.lambda=0.5",
    "roma.refresh=2",
    # A rank that is killed before all have met is waited for this long.
    "guards.collective_timeout=30",
)
LOOKS_EVERY_S = 0.005


def place_of(said: str) -> str:
    """Where a run is that has said this."""
    found = START
    for place, pattern in PLACES.items():
        if re.search(pattern, said, re.MULTILINE):
            found = place
    return found


class Run:
    """A run in the background, which writes into a log."""

    def __init__(self, project: Project) -> None:
        self._log = project.folder / f"{project.out.name}.log"
        self._log.write_text("")
        self.began = time.monotonic()

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Of the ranks, once all are there."""
        raise NotImplementedError

    def is_over(self) -> bool:
        raise NotImplementedError

    def end(self) -> list[int | None]:
        """Exit codes; what still runs is killed."""
        raise NotImplementedError

    def finish(self, timeout_s: float) -> list[int | None]:
        """Wait for the end, at most this long; exit codes."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over() and time.monotonic() < deadline:
            time.sleep(LOOKS_EVERY_S)
        return self.end()

    def strike(self, rank: int, place: str, seconds: float) -> str:
        """Kill a rank `seconds` after the run has come to `place`; where it was then."""
        pids = self.pids()
        while place != START and not self.is_over():
            if re.search(PLACES[place], self.said(), re.MULTILINE):
                break
            time.sleep(LOOKS_EVERY_S)
        time.sleep(seconds)
        found = place_of(self.said())
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(pids[rank], 9)
        return found


def arguments(project: Project, stage: int) -> list[str]:
    return project.arguments("run", f"deepspeed=zero{stage}", *SETTINGS, ranks=RANKS)


class Launched(Run):
    """`roma-ds run --ranks N`."""

    def __init__(self, project: Project, stage: int) -> None:
        super().__init__(project)
        words = ["bash", "-c", f'exec "$0" "$@" >>\'{self._log}\' 2>&1', str(BIN / "roma-ds")]
        self._started = Started([*words, *arguments(project, stage)], project.folder)

    def pids(self) -> list[int]:
        found: list[psutil.Process] = []
        while len(found) < RANKS and not self.is_over():
            time.sleep(LOOKS_EVERY_S)
            with contextlib.suppress(psutil.NoSuchProcess):
                found = self._started.ranks()
        return [process.pid for process in found]

    def is_over(self) -> bool:
        return self._started.process.poll() is not None

    def end(self) -> list[int | None]:
        kill_tree(self._started.process.pid)
        return [self._started.process.wait()]


def be_rank(rank: int, port: int, words: Sequence[str], log: str) -> None:
    """What the launcher would start as a process of its own."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    from roma_ds.pipeline.worker import main

    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Forked(Run):
    """The ranks alone, with nobody to watch them."""

    def __init__(self, project: Project, stage: int) -> None:
        super().__init__(project)
        context = fork_server()
        typed = arguments(project, stage)
        words = ["--config", typed[1], "--until", "report", *typed[4:]]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._ranks = [
            context.Process(target=be_rank, args=(rank, self._port, words, str(self._log)))
            for rank in range(RANKS)
        ]
        for process in self._ranks:
            process.start()
        self.began = time.monotonic()

    def pids(self) -> list[int]:
        return [process.pid for process in self._ranks if process.pid is not None]

    def is_over(self) -> bool:
        return not any(process.is_alive() for process in self._ranks)

    def end(self) -> list[int | None]:
        for process in self._ranks:
            process.kill()
            process.join()
        # roma-ds does this for the ranks that it starts.
        for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{self._port}_*"):
            buffer.unlink()
        return [process.exitcode for process in self._ranks]
