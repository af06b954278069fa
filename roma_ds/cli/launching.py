"""Start the ranks through the deepspeed launcher, watch them, and pass on how they ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from roma_ds.errors import EnvironmentFault, UserError

KNOWN_CODES = (0, 1, 2, 3, 130, 143)
GRACE_S = 40.0


def default_ranks() -> int:
    """One rank a GPU, one without."""
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def launcher_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for launcher and ranks: this Python's tools first (ninja compiles DeepSpeed's ops)."""
    found = dict(environment)
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", os.defpath)])
    if "DS_ACCELERATOR" not in found and not any(Path("/dev").glob("nvidia[0-9]*")):
        found["DS_ACCELERATOR"] = "cpu"
    if found.get("DS_ACCELERATOR") == "cpu":
        # Weights that ZeRO-3 gathers get fresh pages in every step: 2 MiB at once in place of 4 KiB.
        found.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    # The compiled operations hold this environment's paths, so each environment keeps its own.
    found.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch_line(
    ranks: int,
    launcher_flags: Sequence[str],
    worker_arguments: Sequence[str],
    module: str = "roma_ds.train",
) -> list[str]:
    """The deepspeed command; flags of the user come last, so that they win."""
    flags = (
        []
        if any(flag.startswith("--master_port") for flag in launcher_flags)
        else [f"--master_port={_free_port()}"]
    )
    return [
        "deepspeed",
        "--quiet",
        f"--num_accelerators={ranks}",
        *flags,
        *launcher_flags,
        "--module",
        module,
        *worker_arguments,
    ]


def _ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks: grandchildren of the deepspeed command."""
    import psutil

    try:
        direct = psutil.Process(launcher).children()
        return [rank.pid for child in direct for rank in child.children()]
    except psutil.NoSuchProcess:
        return []


def run_launcher(
    ranks: int,
    launcher_flags: Sequence[str],
    worker_arguments: Sequence[str],
    module: str = "roma_ds.train",
) -> int:
    """Print and run the deepspeed command; returns the exit code of the ranks.

    On one host the launcher itself dies of SIGTERM and leaves its ranks running, so this process stays
    in front of it: a signal goes to the ranks, which save and end, and the launcher follows them.
    """
    if ranks < 1:
        raise UserError(f"--ranks must be 1 or more, not {ranks}", "leave it out for one rank a device")
    line = launch_line(ranks, launcher_flags, worker_arguments, module)
    print("$ " + shlex.join(line), flush=True)
    environment = launcher_environment()
    try:
        launcher = subprocess.Popen(
            line, env=environment, start_new_session=True, executable=_program(environment)
        )
    except OSError as error:
        raise EnvironmentFault(
            f"the deepspeed launcher cannot be started: {error}", "pip install deepspeed"
        ) from error
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        targets = _ranks_of(launcher.pid)
        # Each may have ended by itself since it was listed.
        with contextlib.suppress(ProcessLookupError):
            if not targets:
                os.killpg(launcher.pid, signal.SIGKILL)
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    previous = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = _wait(launcher, received)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received:
        return 128 + received[0]
    if code not in KNOWN_CODES:
        print(
            "roma-ds: error: a rank was killed; the last saved state is kept\n"
            "  fix: rerun the same command to go on",
            file=sys.stderr,
        )
        return 1
    return code


def _program(environment: Mapping[str, str]) -> str:
    import shutil

    found = shutil.which("deepspeed", path=environment["PATH"])
    if found is None:
        raise EnvironmentFault("the deepspeed command is not on the PATH", "pip install deepspeed")
    return found


def _wait(launcher: subprocess.Popen[bytes], received: Sequence[int]) -> int:
    """Wait for the launcher; after a signal, for at most GRACE_S, then end what is left."""
    deadline = None
    while True:
        try:
            return launcher.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if received and deadline is None:
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)
