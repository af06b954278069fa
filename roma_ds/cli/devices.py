"""Which devices ranks take: those that variables choose, with --ranks and the launcher's flags."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from roma_ds.cli.launcher_flags import LOCAL, NO_SSH, LauncherFlags, parts_of
from roma_ds.errors import UserError
from roma_ds.storage import CARRIED_DEVICES

if TYPE_CHECKING:
    from roma_ds.comm.visible_devices import Devices


def likely_ranks() -> int:
    """One rank a GPU that has a device file; for commands that start none, and so ask no accelerator."""
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def place_ranks(flags: LauncherFlags, ranks: int | None) -> tuple[LauncherFlags, int | None]:
    """The flags with the devices that ranks take, and how many ranks a host gets (None: the hostfile says).

    ranks: as typed. Raises UserError where ranks, flags and variables contradict each other.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks must be 1 or more, not {ranks}", "leave it out for one rank a device")
    from roma_ds.comm.visible_devices import find_devices

    devices = find_devices(here=flags.kind in (LOCAL, NO_SSH))
    if flags.hosts:
        return _on_hosts(devices, flags), ranks
    if (flags.include or flags.exclude) and devices.chosen and devices.variable != devices.written:
        raise UserError(
            f"{_flag(flags)} and {devices.words} both choose devices",
            f"leave out the flag, or unset {devices.variable}",
        )
    taken = _taken(devices, flags, ranks if ranks is not None else flags.num_gpus)
    by_number = all(entry.isdigit() for entry in taken) and devices.variable in ("", devices.written)
    slots: tuple[int, ...] = ()
    if by_number and (flags.include or flags.exclude or devices.chosen):
        slots = tuple(map(int, taken))
    environment = _carrying(devices, taken if devices.chosen else None) if devices.variable else {}
    if devices.on_cpu and slots:
        # Of this many slots deepspeed's launcher lets --include choose.
        environment["LOCAL_SIZE"] = str(1 + max(slots))
    return replace(flags, slots=slots, environment=environment), len(taken)


def most_ranks(wanted: int) -> int:
    """`wanted` ranks, or as many as there are devices."""
    from roma_ds.comm.visible_devices import find_devices

    devices = find_devices()
    room = wanted if devices.on_cpu and not devices.chosen else len(devices.chosen or range(devices.count))
    return min(wanted, room)


def _carrying(devices: Devices, taken: Sequence[str] | None = None) -> dict[str, str | None]:
    """For the launcher: without the variable, which it would heed or report; what ranks put back beside it.

    taken: those of the variable's devices that ranks take; default: all.
    """
    carried = {devices.written: devices.value}
    if devices.chosen is not None:
        entries = devices.chosen if taken is None else taken
        carried[devices.variable] = ",".join(entries) if devices.chosen else ""
    words = (name if value is None else f"{name}={value}" for name, value in carried.items())
    return {devices.written: None, CARRIED_DEVICES: ":".join(words)}


def _flag(flags: LauncherFlags) -> str:
    return f"--include {flags.include}" if flags.include else f"--exclude {flags.exclude}"


def _taken(devices: Devices, flags: LauncherFlags, wanted: int | None) -> tuple[str, ...]:
    """The device of each rank: numbers or ids."""
    flag = _flag(flags)
    slots = {slot for _, some in parts_of(flags.include or flags.exclude) for slot in some}
    whole = any(not some for _, some in parts_of(flags.include or flags.exclude))
    there: Iterable[str]
    if devices.chosen:
        there, limit, named = devices.chosen, len(devices.chosen), f"{devices.words} chooses"
    elif devices.on_cpu:
        there, limit, named = map(str, itertools.count()), None, ""
    else:
        there, limit, named = map(str, range(devices.count)), devices.count, "the devices here are"
    if limit is not None:
        there = list(there)
        absent = [slot for slot in sorted(slots) if str(slot) not in there]
        if absent:
            raise UserError(
                f"{flag} names device {absent[0]}, but {named} {', '.join(there)}",
                f"leave out {flag.split()[0]}{f' or unset {devices.variable}' if devices.chosen else ''}, "
                "or name devices that both have",
            )
    default = 1 if limit is None else limit
    if flags.include and not whole:
        there, default = list(map(str, sorted(slots))), len(slots)
        if wanted not in (None, default):
            raise UserError(
                f"--ranks {wanted} contradicts {flag}, which names {default} devices",
                f"leave out --ranks, or name {wanted} devices",
            )
    elif flags.exclude:
        excluded = set(map(str, slots))
        there = (entry for entry in there if entry not in excluded) if not whole else ()
        default -= 0 if limit is None else len(slots)
    taken = tuple(itertools.islice(there, wanted if wanted is not None else max(default, 0)))
    if not taken:
        raise UserError(f"{flag} leaves no device", "leave out some of it")
    if wanted is not None and len(taken) < wanted:
        flag = flag if flags.exclude else ""
        raise UserError(_too_many(devices, flag, wanted, len(taken)), _fewer(devices, len(taken)))
    if len(taken) > 1 and not devices.on_cpu and taken[0].startswith("MIG-"):
        raise UserError(
            f"{devices.words}: a process sees one MIG instance, and {len(taken)} ranks need more",
            f"--ranks 1, or whole devices in {devices.variable}",
        )
    return taken


def _too_many(devices: Devices, flag: str, wanted: int, found: int) -> str:
    number = f"{found} device{'' if found == 1 else 's'}"
    if flag:
        return f"--ranks {wanted} contradicts {flag}, which leaves {number}"
    if devices.chosen:
        return f"--ranks {wanted} contradicts {devices.words}, which chooses {number}"
    return f"--ranks {wanted} on {number}: a rank takes a device of its own"


def _fewer(devices: Devices, found: int) -> str:
    if devices.chosen and devices.on_cpu:
        return f"--ranks {found}, or unset {devices.variable}: ranks on CPU take no device"
    return f"--ranks {found}, or more devices{f' in {devices.variable}' if devices.chosen else ''}"


def _on_hosts(devices: Devices, flags: LauncherFlags) -> LauncherFlags:
    """The variable chooses on every host alike: local rank i takes the i-th of its devices."""
    if (
        flags.kind == LOCAL
        and not devices.on_cpu
        and not devices.chosen
        and (flags.world_size or 0) > devices.count
    ):
        raise UserError(
            f"{flags.hostfile} gives this host {flags.world_size} ranks, and it has {devices.count} devices",
            f"slots={devices.count}: a rank takes a device of its own",
        )
    if devices.chosen is None:
        return flags
    if devices.chosen:
        given = next((flag for flag in (flags.include, flags.exclude) if ":" in flag), None)
        if given is not None:
            raise UserError(
                f"{given} and {devices.words} both choose devices",
                f"unset {devices.variable}, or name hosts without their slots",
            )
        mine = [list(flags.hosts)[flags.node_rank]] if flags.kind == NO_SSH else list(flags.hosts)
        for host in mine:
            if flags.hosts[host] > len(devices.chosen):
                raise UserError(
                    f"{host} gets {flags.hosts[host]} ranks, but {devices.words} chooses "
                    f"{len(devices.chosen)} of a host's devices",
                    f"unset {devices.variable}, or write fewer slots into the hostfile",
                )
    return replace(flags, environment=_carrying(devices))
