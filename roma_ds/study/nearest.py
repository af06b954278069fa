"""Nearest successful samples of questions that are not in the index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError

CHUNK = 512


def nearest_members(
    queries: NDArray[np.floating], embeddings: NDArray[np.floating], members: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of `embeddings` [n, dim] among `members` nearest to queries [q, dim], and their inner products.

    Both [q, count], best first, equal ones by row. Embeddings are of unit length.
    Raises UserError when there are fewer members than `count`.
    """
    if len(members) < count:
        more = "take more training samples (train.samples, or limit of data.train)"
        raise UserError(
            f"roma.neighbours is {count}, but the base model answers {len(members)} of the training samples "
            "right, and neighbours are chosen from those",
            f"set roma.neighbours to at most {len(members)}, or {more}" if len(members) else more,
        )
    known = np.asarray(embeddings[members], np.float32)
    ids = np.empty((len(queries), count), np.int64)
    products = np.empty((len(queries), count), np.float64)
    for start in range(0, len(queries), CHUNK):
        found = np.asarray(queries[start : start + CHUNK], np.float32) @ known.T
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        ids[start : start + CHUNK] = members[order]
        products[start : start + CHUNK] = np.take_along_axis(found, order, axis=1)
    return ids, products
