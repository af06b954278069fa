"""What changes in the set S of successful samples: who comes, who goes, whose routing weights moved.

Shapes: u updates, v of them with a vector, w numbers in a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import RomaError

ADD, REMOVE, REFRESH = 0, 1, 2
REFUSED = -1
"""What a rank tells the others in place of updates that cannot be applied."""
NAMES = {ADD: "add", REMOVE: "remove", REFRESH: "refresh"}


class UpdateError(RomaError):
    """Updates that cannot be applied; nothing was changed."""


@dataclass(frozen=True)
class Updates:
    """At most one update an id."""

    ids: NDArray[np.int64]
    """[u]"""
    ops: NDArray[np.uint8]
    """[u], ADD, REMOVE or REFRESH"""
    vectors: NDArray[np.float32]
    """[v, w], of those that add or refresh, in the order of `ids`"""

    @staticmethod
    def none(width: int) -> Updates:
        """Nothing to say."""
        return Updates(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty((0, width), np.float32))

    @property
    def carries(self) -> NDArray[np.bool_]:
        """[u], True where an update has a vector."""
        with_vector: NDArray[np.bool_] = self.ops != REMOVE
        return with_vector

    def refusal(self, members: NDArray[np.bool_], width: int) -> UpdateError | None:
        """What `check` raises, if it does."""
        try:
            self.check(members, width)
        except UpdateError as error:
            return error
        return None

    def check(self, members: NDArray[np.bool_], width: int) -> None:
        """Raises UpdateError, naming the id, for what cannot be applied to `members` [samples]."""
        known = (self.ids >= 0) & (self.ids < len(members))
        _refuse(self.ids, ~known, f"is no sample: ids are 0 to {len(members) - 1}")
        _refuse(self.ids, ~np.isin(self.ops, list(NAMES)), f"has an operation other than {list(NAMES)}")
        inside = members[self.ids]
        _refuse(self.ids, inside & (self.ops == ADD), "is added and already in S")
        for operation in (REMOVE, REFRESH):
            wrong = ~inside & (self.ops == operation)
            _refuse(self.ids, wrong, f"has the operation {NAMES[operation]} and is not in S")
        check_unique(self.ids)
        if self.vectors.shape != (int(self.carries.sum()), width):
            raise UpdateError(
                f"updates from id {self.ids[:1].tolist()} on carry vectors of shape {self.vectors.shape}, "
                f"wanted {(int(self.carries.sum()), width)}"
            )
        unsound = np.asarray(~np.isfinite(self.vectors).all(axis=1))
        _refuse(self.ids[self.carries], unsound, "has a vector with NaN or inf")


def _refuse(ids: NDArray[np.int64], wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise UpdateError(f"id {ids[wrong][0]} {what}")


def check_unique(ids: NDArray[np.int64]) -> None:
    """Raises UpdateError, naming the smallest id that is there twice."""
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise UpdateError(f"id {twice[0]} is updated twice at once")


def merged(parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """ids and ops of all ranks' [u, 2] (id, op), by id ascending: the canonical order, whoever sent what.

    Raises UpdateError for an id that two ranks update.
    """
    together = np.concatenate(parts)
    check_unique(together[:, 0])
    together = together[np.argsort(together[:, 0])]
    return together[:, 0], together[:, 1].astype(np.uint8)
