"""How a rank ends: what it says, its exit code, and the way back into Slurm's queue."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

from roma_ds.errors import (
    NOBODY_READS,
    Interrupted,
    RomaError,
    full_disk,
    nobody_reads,
    out_of_memory,
    silence,
)

ANSWERS_WITHIN_S = 60.0


def requeue(environment: Mapping[str, str] = os.environ) -> str:
    """Ask Slurm to run this job again, and say what came of it. On one rank only."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return "not requeued: this is no Slurm job; rerun the same command to go on"
    command = shutil.which("scontrol", path=environment.get("PATH"))
    if command is None:
        return f"job {job} is not requeued: scontrol is not on the PATH of rank 0; submit it again to go on"
    try:
        done = subprocess.run(
            [command, "requeue", job], capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} is not requeued: {error}; submit it again to go on"
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        return f"job {job} is not requeued: {said}; submit it again to go on"
    return f"job {job} is requeued and goes on when Slurm starts it again"


def explain(error: Exception, rank: int) -> int:
    """Print what ended this rank, once for all ranks where they agree on it; returns the exit code."""
    if isinstance(error, BrokenPipeError) and nobody_reads():
        silence()
        return NOBODY_READS
    found = error if isinstance(error, RomaError) else full_disk(error) or out_of_memory(error)
    if found is None:
        traceback.print_exception(error)
        return 1
    if rank == 0 and isinstance(found, Interrupted) and found.signum == signal.SIGUSR1:
        found.fix = requeue()
    # A signal reaches all ranks.
    once = found.agreed or isinstance(found, Interrupted)
    return report(found, rank) if rank == 0 or not once else found.exit_code


def report(error: RomaError, rank: int = 0) -> int:
    """Print an error for the user; returns its exit code."""
    name = "stopped" if isinstance(error, Interrupted) else "error"
    where = f" (rank {rank})" if rank else ""
    print(f"roma-ds: {name}{where}: {error}", file=sys.stderr, flush=True)
    return error.exit_code


_SAYS_SO = (
    "import sys; from roma_ds.errors import Interrupted; from roma_ds.pipeline.ending import explain; "
    "sys.exit(explain(Interrupted(int(sys.argv[1])), 0))"
)


def end_on_signals() -> None:
    """Until stages listen for them, signals end this process: the libraries take seconds to import."""
    from roma_ds.training.interruption import STOPPING

    def end(signum: int, frame: FrameType | None) -> None:
        rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
        if rank:
            os._exit(128 + signum)
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        # Modules that are half imported are of no use: a new interpreter says it, and asks Slurm.
        os.execv(sys.executable, [sys.executable, "-c", _SAYS_SO, str(int(signum))])

    for signum in STOPPING:
        signal.signal(signum, end)


def leave(code: int) -> NoReturn:
    """End this process at once: a rank that failed must not hang in a collective at exit, and one that is
    done must not be aborted by a library's thread that outlives what it works on."""
    if not code or code > 128:
        # Done, or stopped by a signal after saving.
        from roma_ds.monitor.services import close_services

        close_services()
    if not code:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
