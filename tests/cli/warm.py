"""`roma-ds` in processes forked from one that has imported the libraries, which takes seconds otherwise.

The command and its ranks are processes of their own, with the arguments, variables and streams that they
would have. What is left out is the interpreter's start and the deepspeed launcher, which has its own tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar
from unittest import mock

from roma_ds.storage.atomic import write_text
from roma_ds.testing.local_ranks import fork_server, redirect

STREAMS = ("stdout", "stderr")
RANKS = "ranks"
"""The file with their process ids."""


class WarmCommand:
    """`roma-ds ARGUMENTS`, called in `cwd`, in the background."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        for stream in STREAMS:
            (folder / stream).touch()
        self._process = fork_server().Process(
            target=_command, args=(tuple(arguments), cwd, folder, dict(os.environ)), name="roma-ds"
        )
        self._process.start()

    def ranks(self) -> list[int]:
        """Process ids in the order of ranks; none before all are started."""
        path = Path(self._folder.name) / RANKS
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def has_ended(self) -> bool:
        return not self._process.is_alive()

    def signal(self, signum: int) -> None:
        """To the command alone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signum)

    def finish(self, timeout_s: float) -> tuple[int, str, str]:
        """Wait for the end; exit code, standard output and standard error.

        After `timeout_s` kills command and ranks, and fails.
        """
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            for pid in self.ranks():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        folder = Path(self._folder.name)
        out, err = ((folder / stream).read_text(errors="replace") for stream in STREAMS)
        assert code is not None, f"still running after {timeout_s} s\n{out}\n{err}"
        self._folder.cleanup()
        return code, out, err


def _become(cwd: Path, folder: Path, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Take over what a process that was started anew would find."""
    redirect(folder)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = list(arguments)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for entry in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)


def _command(arguments: Sequence[str], cwd: Path, folder: Path, variables: Mapping[str, str]) -> None:
    _become(cwd, folder, variables, ["roma-ds", *arguments])
    from roma_ds.cli import launching
    from roma_ds.cli.main import main

    class Launcher(WarmLauncher):
        streams = folder

    stand_in = SimpleNamespace(Popen=Launcher, TimeoutExpired=subprocess.TimeoutExpired)
    code: Any = 1
    try:
        with (
            mock.patch.object(launching, "subprocess", stand_in),
            mock.patch.object(launching, "_ranks_of", WarmLauncher.ranks_of),
        ):
            code = main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as the interpreter would at the end of a process
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


class WarmLauncher:
    """Stands in for the deepspeed launcher's process where all ranks are on this host."""

    streams: Path
    _latest: ClassVar[WarmLauncher | None] = None

    def __init__(self, line: Sequence[str], env: Mapping[str, str], **started: Any) -> None:
        words = [word for word in line if word != "--module"]
        at = next(place for place, word in enumerate(words) if place and not word.startswith("-"))
        flags = dict(word.removeprefix("--").split("=") for word in words[1:at] if "=" in word)
        program, arguments = words[at], words[at + 1 :]
        size, self.pid = int(flags["num_accelerators"]), os.getpid()
        self._ranks: list[BaseProcess] = []
        for rank in range(size):
            variables = {
                **env,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": flags["master_port"],
            }
            words = [program, f"--local_rank={rank}", *arguments]
            self._ranks.append(
                fork_server().Process(target=_rank, args=(words, Path.cwd(), self.streams, variables))
            )
        for process in self._ranks:
            process.start()
        WarmLauncher._latest = self
        write_text(self.streams / RANKS, " ".join(str(process.pid) for process in self._ranks))

    @staticmethod
    def ranks_of(launcher: int) -> list[int]:
        """Process ids of those that run, to which a signal goes."""
        found = WarmLauncher._latest
        alive = [process for process in found._ranks if process.is_alive()] if found else []
        return [process.pid for process in alive if process.pid is not None]

    def wait(self, timeout: float) -> int:
        """The exit code of the first rank that failed, which ends the others; 0 where all are done."""
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in self._ranks):
            failed = [process.exitcode for process in self._ranks if process.exitcode]
            if failed:
                for process in self._ranks:
                    process.terminate()
                for process in self._ranks:
                    process.join(30)
                return failed[0]
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("ranks", timeout)
            multiprocessing.connection.wait(
                [process.sentinel for process in self._ranks if process.is_alive()], timeout=0.1
            )
        return next((process.exitcode for process in self._ranks if process.exitcode), 0)


def _rank(words: Sequence[str], cwd: Path, folder: Path, variables: Mapping[str, str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _become(cwd, folder, variables, words)
    if words[0].endswith(".py"):
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__")


def run_launcher(
    line: Sequence[str], env: Mapping[str, str], stdout: IO[bytes], timeout: float, **started: Any
) -> SimpleNamespace:
    """In place of `subprocess.run` for a line of the launcher whose output goes to a file; its exit code."""
    with tempfile.TemporaryDirectory() as name:

        class Launcher(WarmLauncher):
            streams = Path(name)

        code = Launcher(line, env).wait(timeout)
        for stream in STREAMS:
            stdout.write((Launcher.streams / stream).read_bytes())
    return SimpleNamespace(returncode=code)
