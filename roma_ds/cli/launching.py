"""Start the ranks through the deepspeed launcher or mpirun, watch them, and pass on how they ended."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from roma_ds.cli.carried_variables import ENV_FILE, carried, left_out, warning_of, write_env_file
from roma_ds.cli.deepspeed_line import free_port, launch_line
from roma_ds.cli.launcher_flags import BY_SLOTS, LOCAL, MPIRUN, NO_SSH, LauncherFlags
from roma_ds.cli.mpirun_line import mpirun_line
from roma_ds.cli.remote_ranks import signal_remote_ranks
from roma_ds.cli.text_file import plain_copy
from roma_ds.errors import NOBODY_READS, EnvironmentFault, UserError, nobody_reads
from roma_ds.storage.shared_buffers import forget_shared_buffers

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_TOOLS = str(Path(sys.executable).parent)
KNOWN_CODES = (0, 1, 2, 3, NOBODY_READS, *(128 + signum for signum in FORWARDED))
SAVES_WITHIN_S = 600.0
"""After a signal: what is left of a step of a large model, and its state."""
FOLLOW_WITHIN_S = 30.0
SAYS_SO_AFTER_S = 10.0
MPIRUN_KILLS_AFTER_S = 40
"""mpirun waits all of it whenever it ends ranks."""
REMOTE_KILL_S = 3.0
SAME_KEY_S = 1.0
"""Within these a second SIGINT is the same Ctrl-C."""
SSH_KEEPALIVE = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""ssh waits a quarter of an hour for a host whose link is down; with these, 40 seconds."""
KEEPALIVE_VARIABLE = "PDSH_SSH_ARGS_APPEND"


def launcher_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for launcher and ranks: this Python's tools first (ninja compiles DeepSpeed's ops)."""
    found = dict(environment)
    found["PATH"] = os.pathsep.join([_TOOLS, found.get("PATH", os.defpath)])
    if "DS_ACCELERATOR" not in found:
        from roma_ds.comm.visible_devices import accelerator

        if accelerator().device_name() == "cpu":
            found["DS_ACCELERATOR"] = "cpu"
    if found.get("DS_ACCELERATOR") == "cpu":
        # Weights that ZeRO-3 gathers get fresh pages in every step: 2 MiB at once in place of 4 KiB.
        found.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    # The compiled operations hold this environment's paths, so each environment keeps its own.
    found.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return found


def _ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks: grandchildren of the deepspeed command."""
    import psutil

    try:
        direct = psutil.Process(launcher).children()
        return [rank.pid for child in direct for rank in child.children()]
    except psutil.NoSuchProcess:
        return []


def _starter_of(launcher: int) -> list[int]:
    """What the deepspeed command runs: mpirun or srun, which pass signals on."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(launcher).children()]
    return []


def _environment_for(flags: LauncherFlags) -> tuple[dict[str, str], Path | None]:
    """Variables for the launcher, and the file that carries some of them to other hosts."""
    from roma_ds.comm.ranks import set_by_launcher

    environment = launcher_environment()
    if "DS_ACCELERATOR" not in os.environ and flags.kind not in (LOCAL, NO_SSH):
        # The other hosts may have what this one lacks.
        environment.pop("DS_ACCELERATOR", None)
    for name in set_by_launcher(environment):
        del environment[name]
    for name, value in flags.environment.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    if flags.kind in (LOCAL, NO_SSH):
        return environment, None
    if flags.kind in BY_SLOTS:
        # The mpirun that the user chose, such as a module of the cluster, before one of this environment.
        environment["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), _TOOLS])
    # Unless it is told otherwise, mpirun gives ranks one second to save after SIGTERM.
    environment.setdefault("PRTE_MCA_odls_base_sigkill_timeout", str(MPIRUN_KILLS_AFTER_S))
    if flags.kind == "pdsh":
        environment[KEEPALIVE_VARIABLE] = f"{environment.get(KEEPALIVE_VARIABLE, '')} {SSH_KEEPALIVE}".strip()
    if flags.kind == MPIRUN:
        return environment, None
    variables = carried(environment)
    if flags.kind == "openmpi":
        variables |= {"MASTER_ADDR": flags.master_addr or flags.first_host}
        variables |= {"MASTER_PORT": str(flags.master_port)} if flags.master_port else {}
    through_shell = flags.kind == "pdsh"
    warning = warning_of(flags.kind, left_out(variables, through_shell))
    if warning:
        print(warning, file=sys.stderr, flush=True)
    file = write_env_file(variables, through_shell)
    environment[ENV_FILE] = str(file)
    return environment, file


def run_launcher(
    ranks: int | None,
    flags: LauncherFlags,
    worker_arguments: Sequence[str],
    module: str = "roma_ds.train",
) -> int:
    """Print and run the launcher's command; returns the exit code of the ranks.

    On one host the launcher itself dies of SIGTERM and leaves its ranks running, so this process stays in
    front of it: a signal goes to the ranks, on whatever host, which save and end, and the launcher follows
    them.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks must be 1 or more, not {ranks}", "leave it out for one rank a device")
    mark = secrets.token_hex(4) if flags.kind == "pdsh" else ""
    port = flags.master_port or free_port()
    environment, file = _environment_for(flags)
    hostfile = plain_copy(flags.hostfile) if flags.hostfile is not None else None
    if hostfile is not None:
        flags = replace(flags, given=(*flags.given, f"--hostfile={hostfile}"))
    if flags.kind == MPIRUN:
        line = mpirun_line(flags, worker_arguments, environment)
    else:
        line = launch_line(ranks, flags, worker_arguments, mark, module, port)
    print("$ " + shlex.join(line), flush=True)
    # Slurm sends its warning to all processes of a job: the launchers, which inherit this, must survive it.
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        launcher = subprocess.Popen(
            line, env=environment, start_new_session=True, executable=_program(line[0], environment)
        )
    except OSError as error:
        signal.signal(signal.SIGUSR1, before)
        raise EnvironmentFault(
            f"the deepspeed launcher cannot be started: {error}", "pip install deepspeed"
        ) from error
    received: list[int] = []
    at: list[float] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        again = signum == signal.SIGINT and bool(at) and time.monotonic() > at[0] + SAME_KEY_S
        received.append(signum)
        at.append(time.monotonic())
        if again:
            kill()
            return
        if mark:
            signal_remote_ranks(flags, mark, signum, environment)
            return
        if flags.kind == MPIRUN:
            targets = [launcher.pid]
        else:
            targets = (_ranks_of if flags.kind in (LOCAL, NO_SSH) else _starter_of)(launcher.pid)
        # Each may have ended by itself since it was listed.
        with contextlib.suppress(ProcessLookupError):
            if not targets:
                os.killpg(launcher.pid, signal.SIGKILL)
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def kill() -> None:
        if mark:
            signal_remote_ranks(flags, mark, signal.SIGKILL, environment)
            time.sleep(REMOTE_KILL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)

    previous = {signum: signal.signal(signum, forward) for signum in FORWARDED}
    previous[signal.SIGUSR1] = before

    def unheard() -> None:
        if flags.kind == LOCAL:
            received.append(signal.SIGTERM)
            _end_without_its_launcher(launcher)
        else:
            forward(signal.SIGTERM, None)

    try:
        code = _wait(launcher, received, kill, unheard)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        for made in filter(None, (file, hostfile)):
            made.unlink(missing_ok=True)
        if flags.kind == LOCAL and not flags.hosts:
            # A rank that died before all had met leaves them; the port was of this run alone.
            forget_shared_buffers("127.0.0.1", str(port))
    if nobody_reads():
        return NOBODY_READS
    if received:
        return 128 + received[0]
    if code not in KNOWN_CODES:
        lost = "a rank was killed" if flags.kind == LOCAL else "a rank was killed, or its host is lost"
        print(
            f"roma-ds: error: {lost}; the last saved state is kept\n  fix: rerun the same command to go on",
            file=sys.stderr,
        )
        return 1
    return code


def _program(name: str, environment: Mapping[str, str]) -> str:
    path = environment["PATH"]
    found = shutil.which(name, path=path if name == "mpirun" else os.pathsep.join([_TOOLS, path]))
    if found is None:
        raise EnvironmentFault(f"the {name} command is not on the PATH", "pip install deepspeed")
    return found


def _end_without_its_launcher(launcher: subprocess.Popen[bytes]) -> None:
    """Let ranks save and end, after their launcher: it would complain that nobody reads how they ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(launcher.pid).children()
        ranks = [rank for child in started for rank in child.children()]
        for program in (launcher, *started):
            program.kill()
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.terminate()
        end = time.monotonic() + SAVES_WITHIN_S
        while ranks and time.monotonic() < end:
            gone, ranks = psutil.wait_procs(ranks, 0.5)
            if gone:
                # As the launcher has it: one may have ended before it could listen, and the rest wait for it.
                end = min(end, time.monotonic() + FOLLOW_WITHIN_S)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()


def _wait(
    launcher: subprocess.Popen[bytes],
    received: Sequence[int],
    kill: Callable[[], None],
    unheard: Callable[[], None],
) -> int:
    """Wait for the launcher; after a signal for at most SAVES_WITHIN_S, then end what is left by `kill`.

    unheard: called once where nobody reads the output any more.
    """
    told = False
    first = math.inf
    while True:
        try:
            return launcher.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if not received and nobody_reads():
                unheard()
            if not received:
                continue
            now = time.monotonic()
            first = min(first, now)
            if now > first + SAVES_WITHIN_S:
                kill()
                first = now
            elif now > first + SAYS_SO_AFTER_S and not told:
                told = True
                print(
                    f"roma-ds: waiting for the ranks, which finish a step and save it, for at most "
                    f"{SAVES_WITHIN_S:g} s; Ctrl-C once more ends them now",
                    file=sys.stderr,
                    flush=True,
                )
