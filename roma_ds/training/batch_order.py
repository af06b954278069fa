"""Which samples an optimizer step sees, on which rank: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roma_ds.config import TrainConfig
from roma_ds.errors import UserError


def deal(rows: Sequence[int], lengths: Sequence[int], groups: int) -> list[list[int]]:
    """`rows` in `groups` parts of similar length inside and as equal numbers of tokens as that allows.

    lengths: tokens of every row number. Rows are ordered longest first and cut into consecutive parts such
    that the largest part is as small as possible; the last parts may be empty.
    """
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))

    def cut(budget: int) -> list[list[int]]:
        parts: list[list[int]] = []
        room = 0
        for row in ordered:
            if not parts or lengths[row] > room:
                parts.append([])
                room = budget
            parts[-1].append(row)
            room -= lengths[row]
        return parts

    low = max((lengths[row] for row in ordered), default=0)
    high = sum(lengths[row] for row in ordered)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= groups else (middle + 1, high)
    parts = cut(low)
    return parts + [[] for _ in range(groups - len(parts))]


def batch_line(train: TrainConfig, ranks: int) -> str:
    """One update in words; of a config without train.batch with the note that ranks decide it."""
    split = train.split(ranks)
    shared = f"{ranks} {'rank' if ranks == 1 else 'ranks'} x {split.passes}"
    parts = "micro-batch" if split.passes == 1 else "micro-batches"
    text = f"an update has {split.samples} samples: {shared} {parts} of at most {split.micro_batch}"
    if train.batch is not None:
        return text
    return (
        f"{text}. train.batch is not set: another number of ranks changes what is trained, unless you set "
        f"train.batch={train.micro_batch * train.gradient_accumulation * ranks}"
    )


def chosen_rows(total: int, count: int | None, seed: int) -> tuple[int, ...]:
    """Numbers of the samples that are trained on, ascending: `count` of `total`, or all of them.

    A smaller `count` of the same seed chooses among the rows of a larger one. Raises UserError when there
    are fewer.
    """
    if count is None or count == total:
        return tuple(range(total))
    if count > total:
        raise UserError(
            f"train.samples is {count}, but there are {total} training samples", "lower it, or set it to null"
        )
    order = np.random.default_rng([seed, 3]).permutation(total)
    return tuple(sorted(int(row) for row in order[:count]))


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
    numbers: Sequence[int] | None = None
    """Number of each of these rows among all samples; None where they are all."""

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
        chosen = [int(row) for row in order[start : start + self.global_batch]]
        return chosen if self.numbers is None else [self.numbers[row] for row in chosen]

    def share(
        self, step: int, rank: int, world_size: int, micro_batch: int, lengths: Sequence[int]
    ) -> list[list[int]]:
        """The micro-batches of one rank, of at most `micro_batch` rows on average; some may be empty.

        lengths: tokens of every row. At each turn the ranks work on sequences of similar length. Every rank
        gets the same number of micro-batches, because each forward pass is a collective.
        """
        count = -(-self.global_batch // (world_size * micro_batch))
        parts = deal(self.rows(step), lengths, count * world_size)
        return parts[rank::world_size]
