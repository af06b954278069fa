"""What the flags after `--` mean: which hosts, how many ranks, and what starts them.

The deepspeed launcher takes the flags itself; here they are only read, so that a mistake is named before
anything starts. Source of names and defaults: deepspeed's launcher/runner.py.
"""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roma_ds.cli.text_file import lines_of
from roma_ds.errors import UserError

DEFAULT_HOSTFILE = Path("/job/hostfile")
"""Where the deepspeed launcher looks when no hostfile is named."""
DEEPSPEED_LAUNCHERS = ("pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm")
MPIRUN = "mpirun"
"""Not one of deepspeed's: mpirun without the deepspeed launcher."""
BY_SLOTS = ("openmpi", "mpich", "impi", "mvapich", MPIRUN)
"""These take the number of ranks from the hostfile alone."""
LOCAL, NO_SSH = "local", "no_ssh"
_HOST = re.compile(r"(\S+)\s+slots=([0-9]+)(?:\s+max[-_]slots=[0-9]+)?(?:\s+#.*)?")
"""A line of a hostfile; mpirun also takes the most slots, and both of them a comment."""


@dataclass(frozen=True)
class LauncherFlags:
    """The flags as given, and what they come to."""

    given: tuple[str, ...]
    kind: str
    """LOCAL, NO_SSH, MPIRUN, or one of DEEPSPEED_LAUNCHERS."""
    hosts: dict[str, int]
    """Ranks by host, in the order of the hostfile; empty where there is none."""
    hostfile: Path | None = None
    node_rank: int = -1
    """This host's place among them, for NO_SSH."""
    master_addr: str = ""
    master_port: int | None = None
    ssh_port: int | None = None
    launcher_args: str = ""
    include: str = ""
    exclude: str = ""
    num_gpus: int | None = None
    """These three choose devices; of a run on this host alone they are not among `given`."""
    slots: tuple[int, ...] = ()
    """Devices of this host that ranks take, where something chooses them: see `place_ranks`."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables for the launcher beside this process's, and None for those that it must not have."""
    reached: bool = False
    """Whether `reach_hosts` saw that all hosts answer."""

    @property
    def world_size(self) -> int | None:
        """Ranks on all hosts; None where the flags do not say."""
        return sum(self.hosts.values()) or None

    @property
    def first_host(self) -> str:
        """Where rank 0 runs."""
        return next(iter(self.hosts), "localhost")


def _choosers() -> argparse.ArgumentParser:
    """Of the flags that choose devices, which deepspeed's launcher takes in some combinations only."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-i", "--include", default="")
    parser.add_argument("-e", "--exclude", default="")
    parser.add_argument("--num_nodes", type=int, default=-1)
    parser.add_argument("--num_gpus", "--num_accelerators", dest="num_gpus", type=int, default=-1)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = _choosers()
    parser.add_argument("-H", "--hostfile", type=Path)
    parser.add_argument("--launcher", type=str.lower, default="pdsh")
    parser.add_argument("--launcher_args", default="")
    parser.add_argument("--no_ssh", action="store_true")
    parser.add_argument("--node_rank", type=int, default=-1)
    parser.add_argument("--master_addr", default="")
    parser.add_argument("--master_port", type=int)
    parser.add_argument("--ssh_port", type=int)
    parser.add_argument("--force_multi", action="store_true")
    return parser


def read_launcher_flags(given: Sequence[str], ranks: int | None = None) -> LauncherFlags:
    """Read the flags after `--`; flags that are not known here are the launcher's business.

    ranks: ranks on each host, where the user gave them; otherwise the hostfile's slots. Raises UserError
    where a file is missing or flags contradict each other.
    """
    try:
        flags, _ = _parser().parse_known_args(list(given))
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise UserError(f"launcher flags: {error}", "see deepspeed --help") from error
    if flags.num_gpus != -1 and (flags.num_gpus < 1 or ranks not in (None, flags.num_gpus)):
        beside = "" if ranks is None else f" beside --ranks {ranks}"
        raise UserError(
            f"--num_gpus {flags.num_gpus}{beside} cannot be", "leave it out: --ranks N says the same"
        )
    num_gpus = flags.num_gpus if flags.num_gpus > 0 else None
    if flags.include and flags.exclude:
        raise UserError("--include and --exclude exclude each other", "give one of them")
    hostfile = flags.hostfile or (DEFAULT_HOSTFILE if DEFAULT_HOSTFILE.is_file() else None)
    if flags.launcher not in (*DEEPSPEED_LAUNCHERS, MPIRUN):
        known = ", ".join((*DEEPSPEED_LAUNCHERS, MPIRUN))
        raise UserError(f"--launcher {flags.launcher} is unknown", f"use one of {known}")
    if hostfile is None:
        _refuse_without_hosts(flags)
        return LauncherFlags(
            tuple(_choosers().parse_known_args(list(given))[1]),
            LOCAL,
            {},
            master_addr=flags.master_addr,
            master_port=flags.master_port,
            include=flags.include,
            exclude=flags.exclude,
            num_gpus=num_gpus,
        )
    if flags.no_ssh and flags.launcher != "pdsh":
        raise UserError(
            f"--no_ssh and --launcher {flags.launcher} contradict each other: with --no_ssh nothing starts "
            "ranks on other hosts",
            "leave out --no_ssh, or --launcher and type the command on every host "
            "(launch/multi_node.sh --no_ssh)",
        )
    hosts = _chosen(read_hostfile(hostfile), flags, ranks)
    kind = flags.launcher
    if flags.no_ssh:
        kind = NO_SSH
    elif not flags.force_multi and kind != MPIRUN and len(hosts) == 1 and is_this_host(next(iter(hosts))):
        kind = LOCAL
    if kind in BY_SLOTS and (ranks is not None or flags.num_gpus > 0 or flags.num_nodes > 0):
        raise UserError(
            f"--launcher {kind} takes the number of ranks from the slots of {hostfile}",
            "leave out --ranks, --num_nodes and --num_gpus, and write the slots into the hostfile",
        )
    return LauncherFlags(
        tuple(given),
        kind,
        hosts,
        hostfile,
        _node_rank(flags, hosts, hostfile) if kind == NO_SSH else -1,
        flags.master_addr,
        flags.master_port,
        flags.ssh_port,
        flags.launcher_args,
        flags.include,
        flags.exclude,
        num_gpus,
    )


def _refuse_without_hosts(flags: argparse.Namespace) -> None:
    for name, is_set in (
        ("--no_ssh", flags.no_ssh),
        ("--node_rank", flags.node_rank >= 0),
        ("--num_nodes", flags.num_nodes > 1),
        *(
            (f"{flag} {text}", {host for host, _ in parts_of(text)} - {"localhost"})
            for flag, text in (("--include", flags.include), ("--exclude", flags.exclude))
        ),
        (f"--launcher {flags.launcher}", flags.launcher != "pdsh"),
    ):
        if is_set:
            raise UserError(
                f"{name} needs a hostfile", "--hostfile FILE with a line `NAME slots=RANKS` for each host"
            )


def parts_of(text: str) -> list[tuple[str, set[int]]]:
    """Hosts of --include or --exclude, each with its slots; with none, the whole host is meant.

    Raises UserError where the text is not HOST[:SLOT,...][@...].
    """
    found = []
    for part in filter(None, text.split("@")):
        host, colon, slots = part.partition(":")
        numbers = slots.split(",")
        if not host or (colon and not all(re.fullmatch(r"[0-9]+", number.strip()) for number in numbers)):
            raise UserError(
                f"{part} is not HOST:SLOT,SLOT", "numbers with commas, hosts with @: worker-0@worker-1:0,2"
            )
        found.append((host, {int(number) for number in numbers} if colon else set()))
    return found


def is_this_host(name: str) -> bool:
    """Whether a host of a hostfile is the one where this runs, by its name or an address of its own."""
    here = socket.gethostname()
    if name in ("localhost", here) or name.partition(".")[0] == here.partition(".")[0]:
        return True
    import psutil

    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return False
    own = {entry.address.partition("%")[0] for some in psutil.net_if_addrs().values() for entry in some}
    return any(address in own or address.startswith("127.") for address in addresses)


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots by host. Raises UserError where the file is missing or a line cannot be read.

    The launcher itself would go on with this host alone where the file is missing.
    """
    if path.is_dir():
        raise UserError(f"the hostfile {path} is a folder", "name the file; see launch/hostfile.example")
    if not path.is_file():
        raise UserError(f"the hostfile {path} does not exist", "see launch/hostfile.example")
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines_of(path), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _HOST.fullmatch(text)
        if found is None or found[1] in hosts or int(found[2]) < 1:
            what = (
                "names a host twice" if found and found[1] in hosts else f"is not `NAME slots=RANKS`: {text}"
            )
            raise UserError(f"{path}:{number}: {what}", "one line a host, such as `worker-0 slots=8`")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise UserError(f"the hostfile {path} names no host", "one line a host, such as `worker-0 slots=8`")
    return hosts


def _chosen(hosts: dict[str, int], flags: argparse.Namespace, ranks: int | None) -> dict[str, int]:
    """Ranks by host after --include or --exclude, --num_nodes, and --num_gpus or --ranks."""
    limited = flags.num_nodes > 0 or flags.num_gpus > 0 or ranks is not None
    if limited and (flags.include or flags.exclude):
        raise UserError(
            "--include and --exclude go with none of --ranks, --num_nodes and --num_gpus",
            "name the slots: --include host:0,1",
        )
    chosen = {host: set(range(slots)) for host, slots in hosts.items()}
    if flags.include or flags.exclude:
        named: dict[str, set[int]] = {}
        for host, slots in parts_of(flags.include or flags.exclude):
            wanted = slots or chosen.get(host, set())
            if host not in chosen or not wanted <= chosen[host]:
                part = f"{host}:{','.join(map(str, sorted(slots)))}" if slots else host
                raise UserError(f"{part} is not in the hostfile", f"hosts there: {', '.join(hosts)}")
            named[host] = named.get(host, set()) | wanted
        if flags.include:
            chosen = {host: named[host] for host in chosen if host in named}
        else:
            chosen = {host: slots - named.get(host, set()) for host, slots in chosen.items()}
    counts = {host: len(slots) for host, slots in chosen.items() if slots}
    if not counts:
        raise UserError(f"--exclude {flags.exclude} leaves no host", f"hosts of the file: {', '.join(hosts)}")
    if flags.num_nodes > 0:
        counts = dict(list(counts.items())[: flags.num_nodes])
    each = ranks if ranks is not None else flags.num_gpus
    return dict.fromkeys(counts, each) if each > 0 else counts


def _node_rank(flags: argparse.Namespace, hosts: dict[str, int], hostfile: Path) -> int:
    """Place of this host; found by its name where it is not given."""
    if flags.node_rank >= 0:
        if flags.node_rank < len(hosts):
            return int(flags.node_rank)
        raise UserError(
            f"--node_rank {flags.node_rank} of {len(hosts)} hosts", f"hosts count from 0, as in {hostfile}"
        )
    mine = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    for place, host in enumerate(hosts):
        if mine & {host, host.partition(".")[0]}:
            return place
    raise UserError(
        f"this host, {socket.gethostname()}, is not in {hostfile}",
        "give --node_rank N, its place there from 0, or run the command on a host of the file",
    )
