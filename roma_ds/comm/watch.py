"""Let ranks know of each other for as long as a run lasts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from roma_ds.comm.agreement import agreement
from roma_ds.comm.beats import Guest, Hub
from roma_ds.comm.presence import End, Presence, end_process
from roma_ds.comm.world import World
from roma_ds.errors import EnvironmentFault, Interrupted


def join(world: World, after_s: float | None, end: End = end_process) -> Presence | None:
    """Let every rank know of every other; None for one rank, or where `after_s` is None. A collective.

    after_s: seconds of silence after which a rank counts as lost. Raises EnvironmentFault where a rank cannot
    reach rank 0.
    """
    if world.size == 1 or after_s is None:
        return None
    hosts = tuple(world.gather_objects(socket.gethostname()))
    presence = Presence(world.rank, hosts, after_s, end)
    hub = Hub(presence, world.size) if world.is_first else None
    port, token = world.from_first((hub.port, hub.token) if hub else None)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if hub is not None:
        presence.start(hub.run)
    with agreement(world):
        if hub is None:
            try:
                guest = Guest(presence, address, port, token)
            except OSError as error:
                raise EnvironmentFault(
                    f"rank {world.rank} (host {hosts[world.rank]}) cannot reach rank 0 "
                    f"at {address}:{port}: {error}",
                    "open the ports between the hosts, or set guards.lost_after=null",
                ) from error
            presence.start(guest.run)
    return presence


@contextlib.contextmanager
def watched(world: World, after_s: float | None) -> Iterator[None]:
    """Inside, every rank knows of every other. A collective to enter.

    A rank that leaves by an error of its own alone counts as lost, and the others end some time after it.
    """
    presence = join(world, after_s)
    try:
        yield
    except Exception as error:
        if isinstance(error, Interrupted) or getattr(error, "agreed", False):
            _leave(presence)
        raise
    _leave(presence)


def _leave(presence: Presence | None) -> None:
    if presence is not None:
        presence.leave()
