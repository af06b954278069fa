"""Send a signal to the ranks that pdsh started on other hosts."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping

from roma_ds.cli.launcher_flags import LauncherFlags


def signal_remote_ranks(flags: LauncherFlags, mark: str, signum: int, environment: Mapping[str, str]) -> None:
    """Send `signum` to the ranks of the start that `mark` names, on all hosts; does not wait.

    The launcher's own way would close the ranks' output first and kill them soon after. mark: in the ranks'
    command lines as --launch_id.
    """
    # Ranks alone have --local_rank=NUMBER; the pattern does not match the command lines that carry it.
    pattern = rf"roma_ds.train\S* --local_rank=[0-9]+ .*--launch_id={mark}"
    arguments = environment.get("PDSH_SSH_ARGS_APPEND", "")
    if flags.ssh_port is not None:
        arguments += f" -p {flags.ssh_port}"
    name = signal.Signals(signum).name.removeprefix("SIG")
    subprocess.Popen(
        ["pdsh", "-f", "1024", "-w", ",".join(flags.hosts), f"pkill -{name} -f -- '{pattern}'"],
        env={**environment, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": arguments.strip()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
