"""A job whose time is up goes back into Slurm's queue, where the same command goes on from what is saved."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

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
