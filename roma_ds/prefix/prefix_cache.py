"""The prefix cache: the hidden states that enter the first trained layer, computed once and kept on disk.

Sequences consist of segments, and what several of them begin with is there once. A folder with `index.json`,
`lengths.npy` (int64 [segments]), where anything is shared `tree.npy` (which segment follows which, and in
which one a sequence ends), `written.bin` (one byte a segment, 1 once its values are on disk), `checksums.bin`
(uint32 [segments], CRC-32 of its values) and the shards `hidden-00000.bin` and so on: the raw values
[length, hidden] of segment i lie in shard i % shards in the model's dtype, one segment after the other
without padding. Every place is known beforehand, and so is the sequence that gives a segment its values: any
process writes any sequence in any order, and the bytes are the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.families.entering import Entering
from roma_ds.prefix.cache_plan import (
    REMAKE,
    SUM,
    SUMS,
    WRITTEN,
    CachePlan,
    disk_bytes,
    read_plan,
    shard_name,
)
from roma_ds.prefix.disk_room import check_room, disk_faults
from roma_ds.prefix.layout import STAGING, lay_out, own_files
from roma_ds.prefix.segments import Segments
from roma_ds.storage.raw_values import bytes_of, read_at, write_at

__all__ = ["PrefixCache", "disk_bytes", "is_begun", "open_cache", "open_plan", "plan_cache"]


class PrefixCache:
    """A planned or finished cache, seen from one process; each process opens its own.

    One thread writes; reading is safe from several.
    """

    def __init__(self, folder: Path, plan: CachePlan, complete: bool, resumed: bool = False) -> None:
        self.folder = folder
        self.plan = plan
        self.complete = complete
        """Finished: it is read and no longer written."""
        self.resumed = resumed
        """Planned again over an unfinished one: what `missing` does not name is there already."""
        self._files: dict[str, int] = {}
        self._opening = threading.Lock()
        self._unflushed: dict[int, int] = {}
        """Checksums by segment"""
        self._compared = np.zeros(len(plan.segments.lengths), np.bool_)
        weakref.finalize(self, _close, self._files)

    def write(self, sequence: int, hidden: torch.Tensor) -> None:
        """Put the values [length, hidden] of a sequence in their place, unless they are there already.

        Of what it shares with others, those of the first one are kept, whichever comes first.
        Raises ValueError for another shape or dtype, EnvironmentFault when the disk is full.
        """
        if self.complete:
            raise ValueError("a finished prefix cache is not written")
        self._check([sequence])
        shape = (int(self.plan.lengths[sequence]), self.plan.hidden)
        if tuple(hidden.shape) != shape or hidden.dtype != self.plan.dtype:
            raise ValueError(
                f"sequence {sequence}: {hidden.dtype} {tuple(hidden.shape)}, "
                f"planned were {self.plan.dtype} {shape}"
            )
        segments, start = self.plan.segments, 0
        for segment in segments.path(sequence):
            stop = start + int(segments.lengths[segment])
            if segments.owners[segment] == sequence and not self._there[segment]:
                self._put(segment, hidden[start:stop])
            start = stop

    def _put(self, segment: int, hidden: torch.Tensor) -> None:
        content = bytes_of(hidden.detach().cpu().contiguous())
        place = int(self.plan.offsets[segment])
        with self._disk():
            write_at(self._file(shard_name(segment % self.plan.shards)), content, place)
        self._unflushed[segment] = zlib.crc32(content)

    def flush(self) -> None:
        """Wait until what this process wrote is on disk, and note it there.

        Raises EnvironmentFault when the disk does not take it.
        """
        written = sorted(self._unflushed)
        with self._disk():
            for number in sorted({segment % self.plan.shards for segment in written}):
                os.fsync(self._file(shard_name(number)))
            sums, notes = self._file(SUMS), self._file(WRITTEN)
            for segment in written:
                value = self._unflushed[segment].to_bytes(SUM.itemsize, "little")
                write_at(sums, memoryview(value), SUM.itemsize * segment)
            os.fsync(sums)
            for segment in written:
                write_at(notes, memoryview(b"\x01"), segment)
            os.fsync(notes)
        self._unflushed = {}

    def missing(self) -> NDArray[np.int64]:
        """Numbers of the sequences that are to be written still: no process has flushed what they alone give.

        Tokens that several share are the first one's to give, and missing of that one.
        """
        found: NDArray[np.int64] = np.unique(self.plan.segments.owners[~self._noted()])
        return found

    def finish(self) -> None:
        """Declare the cache complete. For one process, after all have flushed.

        Raises ValueError when a sequence is missing, EnvironmentFault when the disk is full.
        """
        self.flush()
        missing = self.missing()
        if missing.size:
            raise ValueError(
                f"{missing.size} of {len(self.plan.segments.ends)} sequences are not in the prefix cache, "
                f"the first is {missing[0]}"
            )
        with self._disk():
            self.plan.write_index(self.folder, complete=True)
        self.complete = True

    def read(self, sequences: Sequence[int]) -> torch.Tensor:
        """The values [sum of lengths, hidden] of these sequences, one after the other, as a new tensor.

        Raises as `read_once`.
        """
        values, places = self.read_once(sequences)
        return values if torch.equal(places, torch.arange(len(values))) else values[places]

    def read_once(self, sequences: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The values [tokens, hidden] of these sequences, shared ones once, and where each token's lie.

        The second is int64 [sum of lengths]: row of the first, by token of one sequence after the other.
        Raises UserError when a shard has become shorter, EnvironmentFault when the disk fails or values have
        changed there: each segment is compared with its checksum when it is first read here.
        """
        self._check(sequences)
        readers, places = self.plan.segments.once(sequences)
        tokens = int(self.plan.segments.lengths[list(readers)].sum())
        values = torch.empty((tokens, self.plan.hidden), dtype=self.plan.dtype)
        rest = bytes_of(values)
        for segment, sequence in readers.items():
            name, size = shard_name(segment % self.plan.shards), int(self.plan.sizes[segment])
            with self._disk():
                whole = read_at(self._file(name), rest[:size], int(self.plan.offsets[segment]))
            if not whole:
                raise UserError(f"{self.folder / name} is shorter than when it was written", REMAKE)
            if self.complete:
                self._compare(segment, sequence, rest[:size])
            rest = rest[size:]
        return values, torch.from_numpy(places)

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        _close(self._files)

    def _check(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            if not 0 <= sequence < len(self.plan.segments.ends):
                raise IndexError(f"sequence {sequence} of {len(self.plan.segments.ends)}")

    def _noted(self) -> NDArray[np.bool_]:
        """[segments], those whose values are safely on disk."""
        with self._disk():
            written: NDArray[np.bool_] = np.fromfile(self.folder / WRITTEN, np.uint8) == 1
        return written

    @cached_property
    def _there(self) -> NDArray[np.bool_]:
        """What lay on disk before this process wrote: other batches would give it other last bits."""
        return self._noted()

    @cached_property
    def _sums(self) -> NDArray[np.uint32]:
        with self._disk():
            return np.fromfile(self.folder / SUMS, SUM)

    def _compare(self, segment: int, sequence: int, content: memoryview) -> None:
        if not self._compared[segment] and zlib.crc32(content) != self._sums[segment]:
            # From now on the cache counts as unfinished, and the next run makes it again.
            with contextlib.suppress(OSError):
                with open(self.folder / WRITTEN, "r+b") as notes:
                    write_at(notes.fileno(), memoryview(b"\x00"), segment)
                self.plan.write_index(self.folder, complete=False)
            raise EnvironmentFault(
                f"{self.folder / shard_name(segment % self.plan.shards)} has changed since it was written: "
                f"sequence {sequence} does not match its checksum",
                "rerun the same command, which makes the prefix cache again; look at that disk",
            )
        self._compared[segment] = True

    def _disk(self) -> contextlib.AbstractContextManager[None]:
        return disk_faults(self.folder, self.plan.disk_bytes)

    def _file(self, name: str) -> int:
        with self._opening:
            if name not in self._files:
                self._files[name] = os.open(self.folder / name, os.O_RDONLY if self.complete else os.O_RDWR)
            return self._files[name]


def plan_cache(
    folder: Path,
    segments: Segments,
    entering: Entering,
    first_layer: int,
    fingerprint: str,
    shards: int,
) -> PrefixCache:
    """A cache to write, its disk space taken. For one process; the others call `open_plan` afterwards.

    segments: what the sequences consist of. entering: what is kept of each token. shards: files to spread the
    values over. fingerprint: of all that the values depend on. A cache of the same plan, or of one in which
    nothing is shared, is taken up again with as many shards as it has: `resumed` is True then, and it is
    unfinished until `finish`. One of another plan is replaced, a finished one only once there is room beside
    it. Raises EnvironmentFault when the disk is too small, before anything is touched.
    """
    width, dtype = entering.width, entering.dtype
    plan = CachePlan(segments, width, dtype, first_layer, fingerprint, shards)
    needed = plan.disk_bytes
    with disk_faults(folder, needed):
        useless = list(own_files(folder / STAGING))
        older: list[Path] = []
        try:
            old, complete = read_plan(folder)
        except UserError:
            useless.extend(own_files(folder))
        else:
            if plan.agrees(old):
                shutil.rmtree(folder / STAGING, ignore_errors=True)
                if complete:
                    old.write_index(folder, complete=False)
                return PrefixCache(folder, old, complete=False, resumed=True)
            (older if complete else useless).extend(own_files(folder))
        check_room(folder, needed, useless, older)
        lay_out(folder, plan, useless, older)
    return PrefixCache(folder, plan, complete=False)


def is_begun(folder: Path, fingerprint: str) -> bool:
    """Whether a cache of this fingerprint has its room on disk, finished or not."""
    try:
        return _open(folder, fingerprint).plan.fingerprint == fingerprint
    except UserError:
        return False


def open_plan(folder: Path, fingerprint: str) -> PrefixCache:
    """The cache that another process planned, to write.

    Raises UserError with the reason where there is none.
    """
    cache = _open(folder, fingerprint)
    if cache.complete:
        raise UserError(f"the prefix cache in {folder} is finished already", REMAKE)
    return cache


def open_cache(folder: Path, fingerprint: str) -> PrefixCache:
    """A finished cache, to read.

    Raises UserError with the reason where it is absent, unfinished, damaged or made from something else.
    """
    cache = _open(folder, fingerprint)
    if not cache.complete:
        raise UserError(f"the prefix cache in {folder} is unfinished", REMAKE)
    return cache


def _open(folder: Path, fingerprint: str) -> PrefixCache:
    with disk_faults(folder, 0):
        plan, complete = read_plan(folder)
    if plan.fingerprint != fingerprint:
        raise UserError(f"the prefix cache in {folder} was made from another model, data or layers", REMAKE)
    return PrefixCache(folder, plan, complete)


def _close(files: dict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])
