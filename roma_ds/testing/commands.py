"""Commands and ranks in processes of their own, forked from one that has imported the libraries.

They have the arguments, variables and streams that they would have if a user typed them. What is left out is
the interpreter's start and the deepspeed launcher, which take seconds.
"""

from __future__ import annotations

import os
import re
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from roma_ds.testing.local_ranks import fork_server, redirect

COMMAND = "roma_ds.cli.main"
"""What `roma-ds` runs."""
RANK = "roma_ds.train"
"""What a launcher runs on every rank."""


@dataclass(frozen=True)
class Finished:
    """How processes ended and what they said."""

    code: int
    """The exit code; of several processes the first that is not 0."""
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error's own words, without its fix; what was raised, or said last, where it is no message."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        own = [line.partition("error: ")[2] for line in lines if "error: " in line]
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        return (own or raised or lines or [f"exit code {self.code}"])[-1].strip()


def roma_ds(*arguments: str, cwd: Path, timeout_s: float = 300.0) -> Finished:
    """`roma-ds ARGUMENTS` in the folder `cwd`. Raises TimeoutError after `timeout_s`."""
    return _together(COMMAND, [(arguments, {})], cwd, timeout_s)


def on_local_ranks(size: int, *arguments: str, cwd: Path, timeout_s: float = 300.0) -> Finished:
    """What a launcher starts with these arguments for `size` ranks on this host, in the folder `cwd`.

    Raises TimeoutError after `timeout_s`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": size, "LOCAL_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        (
            (f"--local_rank={rank}", *arguments),
            {name: str(value) for name, value in {**meeting, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(size)
    ]
    return _together(RANK, started, cwd, timeout_s)


def _together(
    module: str,
    started: Sequence[tuple[tuple[str, ...], Mapping[str, str]]],
    cwd: Path,
    timeout_s: float,
) -> Finished:
    """A module as the main program of several processes, each with its arguments and variables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stream in ("stdout", "stderr"):
            (folder / stream).touch()
        processes = [
            fork_server().Process(target=_run, args=(module, words, cwd, folder, {**os.environ, **more}))
            for words, more in started
        ]
        for process in processes:
            process.start()
        code = _ended(processes, time.monotonic() + timeout_s)
        out, err = ((folder / stream).read_text(errors="replace") for stream in ("stdout", "stderr"))
    if code is None:
        raise TimeoutError(
            f"{module} {' '.join(started[0][0])} still ran after {timeout_s:g} s\n{out}\n{err}"
        )
    return Finished(code, out, err)


def _ended(processes: Sequence[BaseProcess], deadline: float) -> int | None:
    """The first exit code that is not 0, which ends the other processes; None where the time was up."""
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            # Ranks that agreed on an error end by themselves within moments.
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    if any(codes):
        return next(code for code in codes if code)
    return None if None in codes else 0


def _run(module: str, words: Sequence[str], cwd: Path, folder: Path, variables: Mapping[str, str]) -> None:
    become(cwd, folder, variables, ["roma-ds", *words])
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def become(cwd: Path, folder: Path, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Take over what a process that was started anew would find; streams go to files in `folder`."""
    redirect(folder)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = list(arguments)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
