"""A tiny project that is trained on pretended hosts, by each way of starting ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cli.projects import BIN, ROOT, Finished, Project, Started, make_project
from hosts.namespaces import Hosts

WAYS: dict[str, tuple[str, ...]] = {
    "pdsh": (),
    "no_ssh": ("--no_ssh",),
    "mpirun": ("--launcher", "mpirun"),
    "openmpi": ("--launcher", "openmpi"),
    "mpirun of MPICH": ("--launcher", "mpirun"),
    "mpich": ("--launcher", "mpich"),
}
"""Launcher flags beside the hostfile. mpirun: Open MPI's; openmpi, mpich: deepspeed's runners."""
MPICH = os.environ.get("ROMA_DS_MPICH")
"""Folder of MPICH's programs, which cannot share an environment with those of Open MPI."""
STEPS, SAVE_EVERY = 64, 8
SETTINGS = ("train.log_every=1", f"train.save_every={SAVE_EVERY}", "train.lr=2.0e-3", "train.keep_states=20")
SHORTER = ("train.epochs=4",)
"""A quarter of the steps, where none is waited for."""
LOST_AFTER_S = 5.0
SSH_NOTICES_S = 6.0
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=2 -o ServerAliveCountMax=3",
    # Open MPI refuses root unless it is told twice.
    **{f"{who}_ALLOW_RUN_AS_ROOT{sure}": "1" for who in ("OMPI", "PRTE") for sure in ("", "_CONFIRM")},
}
# Interpreters look for the package where pytest found it.
VARIABLES["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def prepared(folder: Path) -> Project:
    """The project with all before training done, and the 64 steps of a training slow enough to be hit."""
    project = make_project(folder, epochs=STEPS // 4, words=48, layers=4, hidden=64, experts=8)
    done = project.run("index", *SETTINGS, ranks=1)
    assert done.code == 0, done
    return project


def on_one_host(project: Project, out: Path, stage: int, ranks: int, more: Sequence[str] = ()) -> Project:
    """Trained by ranks of this machine alone."""
    copy = project.copied(out)
    done = copy.run("train", f"deepspeed=zero{stage}", *SETTINGS, *more, ranks=ranks)
    assert done.code == 0, done
    return copy


def saved(project: Project) -> int:
    """The newest saved step; 0 without one."""
    found = (project.out / "train" / "state").glob("step-*")
    return max((int(path.name[5:]) for path in found if path.name[5:].isdigit()), default=0)


@dataclass
class Training:
    """`roma-ds train` of a project on the first `count` hosts, one rank on each."""

    hosts: Hosts
    project: Project
    way: str
    stage: int
    count: int = 2
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        hostfile = self.project.out / "hostfile"
        names = [self.hosts.name(number) for number in range(self.count)]
        hostfile.write_text("".join(f"{name} slots=1\n" for name in names))
        settings = [f"output_dir={self.project.out}", f"deepspeed=zero{self.stage}", *SETTINGS, *self.more]
        flags = ["--hostfile", str(hostfile), *WAYS[self.way]]
        command = [str(BIN / "roma-ds"), "train", str(self.project.config), *settings, "--", *flags]
        starts = range(self.count) if self.way == "no_ssh" else range(1)
        self.started = [self._start(number, command) for number in starts]

    def _start(self, number: int, command: Sequence[str]) -> Started:
        folder, variables = self.project.folder, dict(VARIABLES)
        for side in ("local", "remote"):
            # Open MPI names its folders in /tmp by process ids, which hosts with one /tmp have in common.
            own = self.hosts.folder / side
            own.mkdir(exist_ok=True)
            variables[f"PRTE_MCA_prte_{side}_tmpdir_base"] = str(own)
        if MPICH and "mpich" in self.way.lower():
            variables["PATH"] = os.pathsep.join([MPICH, os.environ.get("PATH", os.defpath)])
        return Started(self.hosts.words(number, command, folder, variables), folder)

    def reach(self, step: int, timeout_s: float = 240) -> None:
        """Wait until a log line of this step or a later one is there."""
        deadline = time.monotonic() + timeout_s
        while not any(line["step"] >= step for line in self.project.metrics()):
            if self.started[0].process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"step {step} was not reached\n{self.started[0].finish(0.1)}")
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        """Send a signal to the first host's `roma-ds`, which nsenter started."""
        for process in psutil.Process(self.started[0].process.pid).children():
            process.send_signal(signum)

    def finish(self, timeout_s: float = 280) -> list[Finished]:
        """How the command on each host ended."""
        return [started.finish(timeout_s) for started in self.started]

    def ranks_left(self, number: int) -> list[psutil.Process]:
        """Ranks that still run on a host."""
        found = []
        for process in self.hosts.processes(number):
            with suppress(psutil.NoSuchProcess):
                if any(word.startswith("--local_rank") for word in process.cmdline()):
                    found.append(process)
        return found
