"""An exchange that broke off, as a message that names the stage and the ranks that did not come."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from roma_ds.comm import World
from roma_ds.comm.arrivals import RollCall, call_roll, waited_in_vain
from roma_ds.comm.lost_rank import lost_another_rank
from roma_ds.errors import EnvironmentFault, RomaError

ROLL_CALL_S = 10.0
"""For ranks that were late too, and still come."""
LAUNCHER_LOOKS_WITHIN_S = 5.0


@contextlib.contextmanager
def named_absence(world: World, timeout_s: float) -> Iterator[None]:
    """Turn the libraries' error for an exchange that broke off into one that says where, and who is missing.

    timeout_s: how long a rank waits in an exchange, for the message.
    """
    try:
        yield
    except Exception as error:
        if waited_in_vain(error):
            raise _late(world, timeout_s) from error
        if lost_another_rank(error):
            raise _gone(world) from error
        raise


def _late(world: World, timeout_s: float) -> EnvironmentFault:
    place = str(world.place)
    roll = call_roll(world.rank, world.size, ROLL_CALL_S)
    fault = EnvironmentFault(
        f"{place}: rank {world.rank} waited {timeout_s:g} s for the others in an exchange; {roll.text()}; "
        "the last saved state is kept",
        "look at those ranks and their hosts, then rerun the same command to go on; where ranks work that "
        "long on their own, raise guards.collective_timeout",
    )
    fault.agreed = _is_said_elsewhere(world, roll)
    return fault


def _gone(world: World) -> RomaError:
    # The launcher shall see the lost rank first: its exit code says what happened, and its signal is final.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    started, place = time.monotonic(), str(world.place)
    roll = call_roll(world.rank, world.size, LAUNCHER_LOOKS_WITHIN_S)
    time.sleep(max(0.0, LAUNCHER_LOOKS_WITHIN_S - (time.monotonic() - started)))
    fault = RomaError(
        f"{place}: another rank ended unexpectedly; {roll.text()}; the last saved state is kept",
        "look for its own message above; rerun the same command to go on",
    )
    fault.agreed = _is_said_elsewhere(world, roll)
    return fault


def _is_said_elsewhere(world: World, roll: RollCall) -> bool:
    """The lowest rank that is left prints the message."""
    return roll.reached and world.rank != min(roll.present)
