"""Whether all ranks hold what was applied: found, named, and where there is a sound copy, mended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from roma_ds.errors import RomaError
from roma_ds.index import digest
from roma_ds.index.live import LiveIndex, Snapshot


@dataclass(frozen=True)
class Damage:
    """A rank whose index is not what it must be."""

    rank: int
    what: str


class ReplicasDiffer(RomaError):
    """Ranks would answer differently from now on."""


def check_replicas(index: LiveIndex, repair: bool = False) -> list[Damage]:
    """Compare epoch, size and digests over the ranks; returns what was found and mended. A collective.

    What a rank holds is compared with what was applied there, and what was applied with the other ranks. So
    of two replicas that differ the damaged one is known, and so is a damaged shard, which has no copy.
    Raises ReplicasDiffer on all ranks, naming those that are wrong, unless `repair` could mend them: in a
    replicated index from the lowest sound rank.
    """
    reports = np.concatenate(index.transport.gather(_report(index)))
    damages, sound = _judge(reports, index.sharded)
    if not damages:
        return []
    if not repair or index.sharded or sound is None:
        error = ReplicasDiffer(
            "the index differs between ranks: "
            + "; ".join(f"rank {damage.rank} {damage.what}" for damage in damages),
            "rerun the same command, which goes on from the last saved state"
            + ("" if index.sharded else ", or set index.on_mismatch=repair"),
        )
        error.agreed = True
        raise error
    _mend(index, sound, {damage.rank for damage in damages}, int(reports[sound, 0]))
    return damages


def _report(index: LiveIndex) -> np.ndarray:
    """uint64 [1, 5]: epoch; digests of flags and of routing vectors, each as held and as applied."""
    held = (digest.of_ids(np.flatnonzero(index.members)), index.digest_held())
    return np.array([[index.epoch, held[0], index.flags_digest, held[1], index.rows_digest]], dtype=np.uint64)


def _judge(reports: np.ndarray, sharded: bool) -> tuple[list[Damage], int | None]:
    """The damaged ranks, and the lowest sound one. reports: uint64 [ranks, 5]."""
    damages = {}
    for rank, (_, flags, flags_applied, rows, rows_applied) in enumerate(reports.tolist()):
        wrong = [
            name
            for name, same in (("S", flags == flags_applied), ("routing vectors", rows == rows_applied))
            if not same
        ]
        if wrong:
            damages[rank] = f"holds other {' and '.join(wrong)} than were applied"
    applied = {
        rank: (row[0], row[2], 0 if sharded else row[4])
        for rank, row in enumerate(reports.tolist())
        if rank not in damages
    }
    if not applied:
        return [Damage(rank, what) for rank, what in sorted(damages.items())], None
    # The most common one; of equally common ones that of the lowest rank, which is counted first.
    usual = Counter(applied.values()).most_common(1)[0][0]
    for rank, mine in applied.items():
        if mine != usual:
            damages[rank] = f"applied other updates than most: epoch {mine[0]}, most are at {usual[0]}"
    sound = min(rank for rank, mine in applied.items() if mine == usual)
    return [Damage(rank, what) for rank, what in sorted(damages.items())], sound


def _mend(index: LiveIndex, sound: int, damaged: set[int], epoch: int) -> None:
    ids = np.flatnonzero(index.members) if index.transport.rank == sound else np.empty(0, np.int64)
    rows = index.payload.read(ids)
    ranks = range(index.transport.size)
    sent_ids = index.transport.exchange([ids if rank in damaged else ids[:0] for rank in ranks])
    sent_rows = index.transport.exchange([rows if rank in damaged else rows[:0] for rank in ranks])
    if index.transport.rank in damaged:
        vectors = index.payload.decoded(sent_rows[sound])
        index.load(Snapshot(epoch, sent_ids[sound], vectors))
