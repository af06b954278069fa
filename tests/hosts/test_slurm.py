"""launch/slurm.sbatch through a real Slurm on pretended hosts: what srun sets is what the ranks find."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli.projects import ROOT, Project, largest_difference
from hosts import evidence
from hosts.cluster import SETTINGS, STEPS, VARIABLES, saved
from hosts.namespaces import Hosts
from hosts.slurm import start_slurm, why_no_slurm

pytestmark = [pytest.mark.timeout(1200)]


@dataclass
class Job:
    """`sbatch launch/slurm.sbatch` of a project, one task on each of two hosts."""

    hosts: Hosts
    project: Project
    log: Path

    def __post_init__(self) -> None:
        self.variables = VARIABLES | start_slurm(self.hosts)
        settings = [f"output_dir={self.project.out}", "deepspeed=zero0", *SETTINGS]
        flags = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={self.log}"]
        job = ["sbatch", *flags, "launch/slurm.sbatch", str(self.project.config), *settings]
        self.number = self.run(*job)

    def run(self, *command: str) -> str:
        """A command of Slurm on the first host; what it says."""
        line = self.hosts.words(0, command, ROOT, self.variables)
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    def state(self) -> str:
        said = self.run("scontrol", "show", "job", self.number)
        return str(dict(word.partition("=")[::2] for word in said.split())["JobState"])

    def wait(self, reached: Callable[[], bool], timeout_s: float = 280) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            said = self.log.read_text() if self.log.exists() else "nothing"
            assert time.monotonic() < deadline, f"{self.state()}\n{said}"
            time.sleep(0.2)


@evidence.in_full_alone()
def test_a_job_trains_as_one_host(
    hosts: Hosts,
    project: Project,
    reference: Callable[[int], Project],
    tmp_path: Path,
    facts: dict[str, list[Any]],
) -> None:
    """All stages in a job, as the script runs them."""
    if lacking := why_no_slurm():
        pytest.skip(lacking)
    there = project.copied(tmp_path / "out")
    started = time.monotonic()
    job = Job(hosts, there, tmp_path / "job.log")
    job.wait(lambda: job.state() in ("COMPLETED", "FAILED"))
    seconds = time.monotonic() - started
    text = job.log.read_text()
    assert job.state() == "COMPLETED", text
    assert text.startswith("$ srun ") and f"step {STEPS}/{STEPS}" in text, text
    assert (there.out / "report" / "report.html").exists() and saved(there) == STEPS
    difference = largest_difference(there.routers(), reference(0).routers())
    facts["equal"].append(
        {
            "way": "sbatch, srun",
            "zero_stage": 0,
            "hosts": 2,
            "ranks": 2,
            "steps": STEPS,
            "largest_router_difference_to_one_host": difference,
            "seconds": round(seconds, 1),
            "slurm": job.run("sinfo", "--version"),
        }
    )
    assert difference <= 1e-6


@evidence.in_full_alone()
def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(
    hosts: Hosts,
    project: Project,
    reference: Callable[[int], Project],
    tmp_path: Path,
    facts: dict[str, list[Any]],
) -> None:
    """The signal that Slurm sends before the time limit, sent by hand; the rest is Slurm's and the ranks'."""
    if lacking := why_no_slurm():
        pytest.skip(lacking)
    there = project.copied(tmp_path / "out")
    job = Job(hosts, there, tmp_path / "job.log")
    job.wait(lambda: any(line["step"] >= 12 for line in there.metrics()))
    job.run("scancel", "--signal=USR1", job.number)
    sent = time.monotonic()
    job.wait(lambda: job.state() == "PENDING")
    seconds = time.monotonic() - sent
    step = saved(there)
    assert 12 <= step < STEPS, job.log.read_text()
    # Slurm waits two minutes before it starts such a job again.
    job.run("scontrol", "update", f"JobId={job.number}", "StartTime=now")
    job.wait(lambda: job.state() in ("COMPLETED", "FAILED"))
    text = job.log.read_text()
    assert job.state() == "COMPLETED", text
    assert text.count(f"job {job.number} is requeued") == 1, text
    assert text.count("$ srun ") == 2 and f"resumed after step {step} of {STEPS}" in text, text
    difference = largest_difference(there.routers(), reference(0).routers())
    facts["signals"].append(
        {
            "signal": "SIGUSR1",
            "way": "sbatch, srun",
            "seconds_until_queued_again": round(seconds, 1),
            "resumed_after_step": step,
            "largest_router_difference_to_no_signal": difference,
        }
    )
    assert difference <= 1e-6
