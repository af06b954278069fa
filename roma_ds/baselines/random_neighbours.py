"""Neighbours drawn at random from the successful samples: the control for the task embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roma_ds.index import Neighbourhood
from roma_ds.index.neighbourhood import ABSENT


def random_neighbours(
    like: Neighbourhood, successful: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> Neighbourhood:
    """As many neighbours per sample as in `like`, drawn without replacement from S, weighted equally.

    A sample itself and copies of its prompt (equal `groups`) are left out as they are from `like`.
    """
    generator = np.random.default_rng([seed, 7])
    members = np.flatnonzero(successful)
    ids = np.full_like(like.ids, ABSENT)
    counts = like.present.sum(axis=1)
    for row, count in enumerate(counts):
        if not count:
            continue
        allowed = members
        picked = generator.choice(allowed, min(len(allowed), int(count) + 8), replace=False)
        picked = picked[groups[picked] != groups[row]]
        if len(picked) < count:
            allowed = members[groups[members] != groups[row]]
            picked = generator.choice(allowed, int(count), replace=False)
        ids[row, :count] = picked[:count]
    # Equal inner products give equal weights.
    return Neighbourhood(ids, np.where(ids == ABSENT, 0.0, 1.0))
