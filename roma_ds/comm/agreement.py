"""Fail together: an error on one rank becomes the same error on every rank, never a hang."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from roma_ds.comm.world import World
from roma_ds.errors import RomaError, error_for, full_disk


class OtherRankFailed(RomaError):
    """Another rank failed with an unforeseen exception; its traceback is printed there."""


@contextlib.contextmanager
def agreement(world: World) -> Iterator[None]:
    """Run local work (no collectives inside), then compare outcomes over the ranks.

    Every rank must enter. When any rank raised, all leave by an exception: a rank that failed by
    its own error, the others by the message and kind of the lowest rank that failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001  it is raised again below, after the others know
        failure = full_disk(error) or error
    report = None
    if isinstance(failure, RomaError):
        report = (failure.exit_code, failure.message, failure.fix)
    elif failure is not None:
        report = (1, f"{type(failure).__name__}: {failure}", None)
    reports = world.gather_objects(report)
    if failure is not None:
        if isinstance(failure, RomaError):
            failure.agreed = True
        raise failure
    for rank, other in enumerate(reports):
        if other is not None:
            code, message, fix = other
            shared = error_for(code, message, fix)
            if code == 1:
                shared = OtherRankFailed(f"rank {rank} failed: {message}", fix)
            shared.agreed = True
            raise shared
