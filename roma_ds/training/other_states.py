"""Resume states that a training does not come from: they are put aside, and none is deleted.

The folder of states is that of one run at a time. What another left there waits in `others`, under its
fingerprint, until that run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from roma_ds.storage.atomic import make_folder, sync_folder
from roma_ds.training.state_manifest import owner_of, states_in

OTHERS = "others"
DAMAGED = "damaged"
METRICS = "metrics.jsonl"
"""The log of a training, beside the folder of its states; it goes with them."""


def put_aside(state: Path, inputs: str) -> Path:
    """Move a state out of the way of the run with fingerprint `inputs`; returns where it is now.

    It goes to the folder of its owner; one that is damaged or stands where `inputs` saves to `damaged`.
    """
    owner = owner_of(state)
    place = DAMAGED if owner in (None, inputs) else str(owner)
    return _move(state, make_folder(state.parent / OTHERS / place) / state.name)


def take_over(folder: Path, inputs: str, say: Callable[[str], None]) -> None:
    """Leave in `folder` the states of the run with fingerprint `inputs`, with those that were put aside.

    States of other runs are put aside, and the metrics beside `folder` with them.
    """
    metrics = folder.parent / METRICS
    owners = {path: owner_of(path) for _, path in states_in(folder)}
    others = [path for path, owner in owners.items() if owner not in (None, inputs)]
    if others:
        # The run that saved last is the one that logged last.
        last = owners[max((path for path in owners if owners[path]), key=lambda path: path.stat().st_mtime)]
        if last != inputs and metrics.exists():
            _move(metrics, make_folder(folder / OTHERS / str(last)) / METRICS)
    for path in others:
        place = put_aside(path, inputs)
        step = path.name.removeprefix("step-")
        say(
            f"state of step {step} belongs to another config, data or global batch; not resumed, "
            f"kept as {place}"
        )
    own = folder / OTHERS / inputs
    if not own.is_dir():
        return
    for _, path in states_in(own):
        if (folder / path.name).exists():
            put_aside(folder / path.name, inputs)
        _move(path, folder / path.name)
    if (own / METRICS).exists():
        os.replace(own / METRICS, metrics)
    if not os.listdir(own):
        own.rmdir()


def has_states(folder: Path, inputs: str) -> bool:
    """Whether the run with fingerprint `inputs` left states, in `folder` or put aside there."""
    places = (folder, folder / OTHERS / inputs)
    return any(owner_of(path) == inputs for place in places for _, path in states_in(place))


def put_damaged_aside(folder: Path, inputs: str, last: int, say: Callable[[str], None]) -> None:
    """Put aside what is no state of a training that goes on from step `last`, of those in its folder."""
    for step, path in states_in(folder):
        if step > last or owner_of(path) != inputs:
            say(f"state of step {step} is not gone on from; kept as {put_aside(path, inputs)}")


def _move(path: Path, wanted: Path) -> Path:
    """Rename, to a name of its own where `wanted` is taken."""
    target, number = wanted, 1
    while target.exists():
        number += 1
        target = wanted.with_name(f"{wanted.name}.{number}")
    os.replace(path, target)
    sync_folder(target.parent)
    return target
