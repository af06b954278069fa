"""Run a function on several ranks that mpirun starts on this host; torch's ranks meet through a file.

As a module (`-m roma_ds.testing.mpi_ranks FOLDER`) this is what mpirun starts: it finds its rank,
takes its task through a socket in FOLDER and answers there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import psutil

from roma_ds.comm.ranks import adopt_ranks
from roma_ds.errors import RomaError

_KEY = "ROMA_DS_MPI_KEY"


class MpiFailed(AssertionError):
    """mpirun ended with a code other than 0, or had to be ended (code None)."""

    def __init__(self, code: int | None) -> None:
        super().__init__("mpirun did not end in time" if code is None else f"mpirun ended with code {code}")
        self.code = code


def _mpirun() -> str | None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return shutil.which("mpirun", path=path)


def why_no_mpi() -> str | None:
    """Why this host cannot start MPI ranks; None when it can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return None if _mpirun() else "no mpirun was found"


@functools.cache
def start_line() -> tuple[str, ...]:
    """mpirun and the flags it needs here; Open MPI would refuse root, and more ranks than cores."""
    program = _mpirun()
    if program is None:
        raise FileNotFoundError("mpirun")
    about = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if "Open MPI" in about:
        return (program, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
    return (program,)


def on_mpi_ranks(size: int, body: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """Call `body(world, *arguments)` on `size` ranks of one MPI job; returns their results in rank order.

    body: a function that each rank can import. Raises MpiFailed.
    """
    key = secrets.token_hex()
    with tempfile.TemporaryDirectory() as folder:
        module = [sys.executable, "-m", "roma_ds.testing.mpi_ranks", folder]
        process = subprocess.Popen(
            [*start_line(), "-n", str(size), *module],
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
                _KEY: key,
            },
        )
        deadline = time.monotonic() + timeout_s
        links: dict[int, Connection] = {}
        results: dict[int, Any] = {}
        try:
            while process.poll() is None and time.monotonic() < deadline:
                for rank in range(size):
                    if rank not in links and (link := _reach(_address(folder, rank), key)):
                        links[rank] = link
                        link.send((body, arguments))
                _take(links, results)
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                _end(process)
                raise MpiFailed(None)
        _take(links, results)
        if process.returncode:
            raise MpiFailed(process.returncode)
        return [results[rank] for rank in range(size)]


def _address(folder: str, rank: int) -> str:
    return str(Path(folder) / f"rank{rank}")


def _reach(address: str, key: str) -> Connection | None:
    try:
        return Client(address, "AF_UNIX", authkey=key.encode())
    except (FileNotFoundError, ConnectionRefusedError):
        # That rank is still starting.
        return None


def _take(links: dict[int, Connection], results: dict[int, Any]) -> None:
    """Move answers that have come into `results`, by rank."""
    for rank, link in links.items():
        if rank in results or link.closed or not link.poll():
            continue
        try:
            results[rank] = link.recv()
        except (EOFError, ConnectionResetError):
            # The rank ended without an answer; mpirun's exit code tells.
            link.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """mpirun puts ranks in groups of their own, so each is ended by its id."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        if member.is_running():
            member.kill()
    process.wait()


def _be_a_rank(folder: str) -> int:
    ranks = adopt_ranks()
    if ranks.world_size == 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        print("none of MPI's variables is set: start this through mpirun", file=sys.stderr)
        return 3
    rank = ranks.rank
    # Names of shared memory are made of them; ranks meet through the file.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(os.getppid())}
    with Listener(_address(folder, rank), "AF_UNIX", authkey=os.environ[_KEY].encode()) as listener:
        link = listener.accept()
    body, arguments = link.recv()
    import torch

    torch.set_num_threads(1)
    from roma_ds.comm import start_world

    try:
        world = start_world(Path(folder) / "rendezvous")
        link.send(body(world, *arguments))
        world.close()
    except RomaError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:  # noqa: BLE001  everything must end this process, or the others would wait
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = _be_a_rank(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # As a rank of a real run: not through MPI's own exit, which waits for the others.
        os._exit(code)
