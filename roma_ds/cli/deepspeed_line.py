"""The line that starts ranks through the deepspeed launcher."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

from roma_ds.cli.launcher_flags import BY_SLOTS, LOCAL, NO_SSH, LauncherFlags

SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
NEEDS_SCRIPT = ("slurm", "mpich")
"""Deepspeed's runners of these cannot start a module."""


def free_port() -> int:
    """A port of this host that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch_line(
    ranks: int | None,
    flags: LauncherFlags,
    worker_arguments: Sequence[str],
    mark: str = "",
    module: str = "roma_ds.train",
    port: int | None = None,
) -> list[str]:
    """The deepspeed command; flags of the user come last, so that they win.

    ranks: on each host, where the flags leave it open. mark: see signal_remote_ranks. port: where ranks of
    this host alone meet, if the flags do not say; default: a free one.
    """
    line = ["deepspeed", "--quiet"]
    if flags.slots:
        line.append(f"--include=localhost:{','.join(map(str, flags.slots))}")
    elif ranks is not None:
        line.append(f"--num_accelerators={ranks}")
    if flags.kind == LOCAL:
        # Several runs on one host must not meet; several hosts must agree, on the launcher's own default.
        line += [] if flags.master_port else [f"--master_port={port or free_port()}"]
    # The launcher would ask the first host over ssh for what is known here.
    address = "127.0.0.1" if flags.kind == LOCAL and flags.hosts else flags.master_addr
    if not address and flags.kind in (NO_SSH, "slurm", *BY_SLOTS):
        address = flags.first_host
    typed = any(word.partition("=")[0] == "--master_addr" for word in flags.given)
    line += [f"--master_addr={address}"] if address and not typed else []
    if flags.hosts and (flags.reached or flags.kind == LOCAL):
        line.append("--no_ssh_check")
    if flags.kind == NO_SSH:
        line.append(f"--node_rank={flags.node_rank}")
    elif flags.kind != LOCAL and len(flags.hosts) == 1:
        # It would train here.
        line.append("--force_multi")
    program = [str(SCRIPT)] if flags.kind in NEEDS_SCRIPT else ["--module", module]
    arguments = [*worker_arguments, *([f"--launch_id={mark}"] if mark else [])]
    if flags.kind == "pdsh":
        arguments = [_for_remote_shell(word) for word in arguments]
    return [*line, *flags.given, *program, *arguments]


def _for_remote_shell(word: str) -> str:
    """A word as the pdsh runner must get it: it puts words with spaces in double quotes, and leaves others.

    pdsh replaces %h and the like.
    """
    word = word.replace("%", "%%")
    if " " not in word:
        return shlex.quote(word)
    return word.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")
