"""Slurm on pretended hosts: a controller on the first, a daemon on each; for sbatch and srun in earnest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from hosts.namespaces import Hosts

CONFIG = """\
ClusterName=pretended
SlurmctldHost={first}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
NodeName={names} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
READY_WITHIN_S = 60.0
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"])


def why_no_slurm() -> str | None:
    """Why there can be no Slurm here; None when there can."""
    lacking = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name, path=PATH) is None]
    return f"needs {', '.join(lacking)}: apt install slurmctld slurmd slurm-client" if lacking else None


def start_slurm(hosts: Hosts) -> dict[str, str]:
    """Start Slurm on all hosts; returns the variables that its commands need. It ends with the hosts."""
    names = [hosts.name(number) for number in range(hosts.count)]
    (hosts.folder / "state").mkdir()
    path = hosts.folder / "slurm.conf"
    settings = {"first": names[0], "names": ",".join(names), "cores": os.cpu_count()}
    path.write_text(CONFIG.format(folder=hosts.folder, **settings))
    variables = {"SLURM_CONF": str(path), "PATH": PATH}
    for number, name in enumerate(names):
        programs = [["slurmd", "-N", name], *([["slurmctld"]] if number == 0 else [])]
        for program in programs:
            line = hosts.words(number, [*program, "-f", str(path)], hosts.folder, variables)
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL)
    _wait(hosts, variables, len(names))
    return variables


def _wait(hosts: Hosts, variables: dict[str, str], count: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    line = hosts.words(0, ["sinfo", "--noheader", "--format=%D", "--states=idle"], Path("/"), variables)
    while True:
        said = subprocess.run(line, capture_output=True, text=True, check=False)
        if said.stdout.strip() == str(count):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Slurm is not ready: {said.stdout}{said.stderr}; see {hosts.folder}")
        time.sleep(0.2)
