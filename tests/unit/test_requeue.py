"""Asking Slurm for another turn, with a scontrol that writes down what it was asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roma_ds.pipeline.ending import requeue


def scontrol(folder: Path, script: str) -> str:
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(folder)


def test_the_job_is_requeued(tmp_path: Path) -> None:
    path = scontrol(tmp_path, f'echo "$@" > {tmp_path}/asked')
    assert requeue({"SLURM_JOB_ID": "4711", "PATH": path}).startswith("job 4711 is requeued")
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo Job is not requeueable >&2; exit 1", "Job is not requeueable"), ("exit 7", "code 7")],
)
def test_what_slurm_answers_is_passed_on(script: str, said: str, tmp_path: Path) -> None:
    text = requeue({"SLURM_JOB_ID": "4711", "PATH": scontrol(tmp_path, script)})
    assert text.startswith("job 4711 is not requeued") and said in text and "submit it again" in text


def test_outside_slurm_or_without_its_tools_it_says_so(tmp_path: Path) -> None:
    assert "no Slurm job" in requeue({"PATH": scontrol(tmp_path, "exit 0")})
    assert "scontrol is not on the PATH" in requeue({"SLURM_JOB_ID": "1", "PATH": str(tmp_path / "empty")})


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    mask = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(mask and int(mask[1], 16) >> (signum - 1) & 1)


def test_a_rank_that_still_imports_its_libraries_asks_too(tmp_path: Path) -> None:
    path = os.pathsep.join([scontrol(tmp_path, f'echo "$@" > {tmp_path}/asked'), os.environ["PATH"]])
    rank = subprocess.Popen(
        [sys.executable, "-m", "roma_ds.train", "--config", "none.yaml"],
        env={**os.environ, "SLURM_JOB_ID": "4711", "PATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not catches(rank.pid, signal.SIGUSR1):
        assert rank.poll() is None
        time.sleep(0.005)
    rank.send_signal(signal.SIGUSR1)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode == 138 and "Traceback" not in said, said
    assert "job 4711 is requeued" in said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
