"""Which samples an optimizer step sees, on which rank: a pure function of the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchOrder:
    """The order of `samples` rows over `epochs`, in global batches cut from a new shuffle each epoch.

    The last batch of an epoch holds what is left. Nothing is remembered between steps, so a run resumes at
    any step, on any number of ranks.
    """

    samples: int
    epochs: int
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return -(-self.samples // self.global_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.steps_per_epoch * self.epochs

    def rows(self, step: int) -> list[int]:
        """All rows of one optimizer step, in order."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.samples)
        start = turn * self.global_batch
        return [int(row) for row in order[start : start + self.global_batch]]

    def share(self, step: int, rank: int, world_size: int, micro_batch: int) -> list[list[int]]:
        """The micro-batches of one rank; those beyond the end of a short last batch are empty.

        Every rank gets the same number of micro-batches, because each forward pass is a collective.
        """
        rows = self.rows(step)
        count = self.global_batch // (world_size * micro_batch)
        starts = [(turn * world_size + rank) * micro_batch for turn in range(count)]
        return [rows[start : start + micro_batch] for start in starts]
