"""Neighbours and weights other than those of RoMA: controls for the task embedding and the kernel."""

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


def shuffled_weights(
    like: Neighbourhood, successful: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> Neighbourhood:
    """The neighbours of `like`, their similarities dealt anew among them: right samples, wrong weights."""
    generator = np.random.default_rng([seed, 11])
    products = like.inner_products.copy()
    for row, present in enumerate(like.present):
        places = np.flatnonzero(present)
        products[row, places] = products[row, generator.permutation(places)]
    return Neighbourhood(like.ids.copy(), products)


def shuffled_rows(
    like: Neighbourhood, successful: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> Neighbourhood:
    """Rows of W dealt anew among the samples: each gets the neighbours and weights of another one.

    Nobody keeps their own row, and who would become their own neighbour (or that of a copy) is left out.
    """
    generator = np.random.default_rng([seed, 13])
    count = len(like.ids)
    # A random cycle through all samples leaves none in its place.
    cycle = generator.permutation(count)
    source = np.empty(count, np.int64)
    source[cycle] = np.roll(cycle, 1)
    ids, products = like.ids[source].copy(), like.inner_products[source].copy()
    own = (ids != ABSENT) & (groups[np.maximum(ids, 0)] == groups[:, None])
    ids[own], products[own] = ABSENT, 0.0
    return Neighbourhood(ids, products)


def own_neighbours(count: int) -> Neighbourhood:
    """Each of `count` samples as its own only neighbour: a pull to routing weights given for that sample."""
    return Neighbourhood(np.arange(count, dtype=np.int64)[:, None], np.ones((count, 1)))
