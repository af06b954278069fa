"""Whether the hosts of a hostfile answer, before anything is spent on a run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from roma_ds.cli.launcher_flags import LOCAL, NO_SSH, LauncherFlags, is_this_host
from roma_ds.errors import EnvironmentFault

CONNECTS_WITHIN_S = 10
ANSWERS_WITHIN_S = 30.0
AT_ONCE = 64
PROGRAMS = {"pdsh": "pdsh", "openmpi": "ompi_info", "mpich": "mpirun", "impi": "mpirun", "slurm": "sinfo"}
"""By runner, the one that deepspeed looks for."""
_WITHOUT_SSH = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")
"""In such a job mpirun starts ranks through the resource manager."""


def reach_hosts(flags: LauncherFlags, environment: Mapping[str, str] = os.environ) -> LauncherFlags:
    """Ask every host, at the same time, for its address; the flags then hold that of the first host.

    Raises EnvironmentFault with the names of those that do not answer, or where a program is missing. Hosts
    are not asked where nothing is started over ssh.
    """
    program = PROGRAMS.get(flags.kind)
    if program is not None and shutil.which(program) is None:
        raise EnvironmentFault(
            f"--launcher {flags.kind} needs {program}, which is not on the PATH",
            f"{'apt install pdsh' if program == 'pdsh' else 'load its module'}, or take "
            "--no_ssh or --launcher mpirun",
        )
    if not _over_ssh(flags, environment):
        return replace(flags, reached=True)
    if shutil.which("ssh") is None:
        raise EnvironmentFault("no ssh is on the PATH", "apt install openssh-client, or --no_ssh")
    hosts = list(flags.hosts)
    if flags.kind != "pdsh":
        hosts = [host for host in hosts if not is_this_host(host)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(hosts, pool.map(lambda host: _ask(host, flags, environment), hosts), strict=True))
    lost = {host: said for host, (reached, said) in answers.items() if not reached}
    if lost:
        first = next(iter(lost))
        more = f"; nor can {', '.join(list(lost)[1:])}" if len(lost) > 1 else ""
        left = len(lost) < len(flags.hosts)
        raise EnvironmentFault(
            f"host {first} cannot be reached over ssh: {lost[first]}{more}",
            f"see `ssh {first} hostname`, which must need no password"
            + (f", or go on without: --exclude {'@'.join(lost)}" if left else ""),
        )
    if flags.kind != "pdsh":
        return replace(flags, reached=True)
    address = flags.master_addr or (answers[flags.first_host][1].split() or [flags.first_host])[0]
    return replace(flags, master_addr=address, reached=True)


def _over_ssh(flags: LauncherFlags, environment: Mapping[str, str]) -> bool:
    if flags.kind in (LOCAL, NO_SSH, "slurm") or not flags.hosts:
        return False
    by_manager = any(name in environment for name in _WITHOUT_SSH)
    chosen = any(name.startswith(("OMPI_MCA_plm", "PRTE_MCA_plm", "HYDRA_LAUNCHER")) for name in environment)
    chosen = chosen or any(word in flags.launcher_args for word in ("plm", "-launcher", "-bootstrap"))
    return flags.kind == "pdsh" or not (by_manager or chosen)


def ssh_line(host: str, flags: LauncherFlags, environment: Mapping[str, str]) -> list[str]:
    """As pdsh calls ssh, without a question that somebody would have to answer."""
    port = ["-p", str(flags.ssh_port)] if flags.ssh_port is not None else []
    own = shlex.split(environment.get("PDSH_SSH_ARGS_APPEND", "")) if flags.kind == "pdsh" else []
    waits = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECTS_WITHIN_S}"]
    return ["ssh", *own, *waits, *port, host, "hostname -I || hostname"]


def _ask(host: str, flags: LauncherFlags, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the host answered, and what it or ssh said."""
    try:
        done = subprocess.run(
            ssh_line(host, flags, environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWERS_WITHIN_S,
            env=dict(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {ANSWERS_WITHIN_S:g} s"
    if done.returncode:
        said = [text for text in done.stderr.splitlines() if text.strip()]
        return False, said[-1].strip() if said else f"ssh ended with {done.returncode}"
    return True, done.stdout.strip()
