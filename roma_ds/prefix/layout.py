"""The files of a planned cache: made aside, each with its room, and moved in when all are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from roma_ds.prefix.cache_plan import INDEX, LENGTHS, SUM, SUMS, TREE, WRITTEN, CachePlan
from roma_ds.prefix.disk_room import cleaned_up, preallocate
from roma_ds.storage.atomic import make_folder, write_npy

STAGING = ".planning"


def lay_out(folder: Path, plan: CachePlan, useless: Sequence[Path], older: Sequence[Path]) -> None:
    """Take the room of a plan, and put its files in the place of those that are `useless` or `older`.

    older: kept until all have their room. Raises OSError when the disk is full.
    """
    count = len(plan.segments.lengths)
    with cleaned_up(folder, folder / STAGING):
        _delete(useless)
        staging = make_folder(make_folder(folder) / STAGING)
        for name, size in plan.files().items():
            preallocate(staging / name, size)
        (staging / WRITTEN).write_bytes(bytes(count))
        (staging / SUMS).write_bytes(bytes(SUM.itemsize * count))
        write_npy(staging / LENGTHS, plan.segments.lengths)
        if not plan.segments.is_flat:
            write_npy(staging / TREE, np.concatenate((plan.segments.parents, plan.segments.ends)))
        plan.write_index(staging, complete=False)
        _delete(older)
        # The index comes last, as it went first: there is none beside the files of two plans.
        for path in reversed(list(own_files(staging))):
            path.rename(folder / path.name)


def own_files(folder: Path) -> Iterator[Path]:
    """Files of a cache that are in a folder, the index first."""
    names = (INDEX, LENGTHS, TREE, WRITTEN, SUMS)
    found = [folder / name for name in names] + sorted(folder.glob("hidden-*.bin"))
    return (path for path in found if path.exists())


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
