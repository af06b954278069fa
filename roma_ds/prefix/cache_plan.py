"""What a prefix cache holds and where in its files: known before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.families.entering import Entering
from roma_ds.planner.cache_size import cache_bytes
from roma_ds.prefix.segments import Segments
from roma_ds.storage import fingerprint as fingerprints
from roma_ds.storage.atomic import read_json, write_json

FORMAT = 3
SEQUENCES_WHOLE = 2
"""The format before it, in which each sequence is one segment."""
INDEX, LENGTHS, TREE = "index.json", "lengths.npy", "tree.npy"
WRITTEN, SUMS = "written.bin", "checksums.bin"
SUM = np.dtype("<u4")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "uint8": torch.uint8,
}
REMAKE = "rerun the command that makes it, or train.prefix_cache=off"


def disk_bytes(segments: Segments, entering: Entering) -> int:
    """Bytes on disk of a cache of these segments, but for a few hundred of headers."""
    return cache_bytes(segments.tokens, len(segments.lengths), entering.token_bytes, segments.links)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"hidden-{number:05d}.bin"


@dataclass(frozen=True, eq=False)
class CachePlan:
    """What a cache holds and where."""

    segments: Segments
    """What the sequences consist of; each is stored once."""
    hidden: int
    """Columns of a segment's table."""
    dtype: torch.dtype
    """uint8 where more than hidden states is kept, as `Entering` has it."""
    first_layer: int
    """The layer that the values enter."""
    fingerprint: str
    """Of everything that the values were made from."""
    shards: int

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.shards < 1 or self.dtype not in DTYPES.values():
            raise ValueError(f"no cache of {self.hidden} {self.dtype} values in {self.shards} shards")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[sequences], tokens of each"""
        return self.segments.sequence_lengths

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[segments], bytes of each"""
        return self.segments.lengths * (self.hidden * self.dtype.itemsize)

    @property
    def disk_bytes(self) -> int:
        """On disk, but for a few hundred of headers."""
        segments, token_bytes = self.segments, self.hidden * self.dtype.itemsize
        return cache_bytes(segments.tokens, len(segments.lengths), token_bytes, segments.links)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[segments], byte in its shard at which a segment starts"""
        offsets = np.zeros_like(self.sizes)
        for number in range(self.shards):
            sizes = self.sizes[number :: self.shards]
            offsets[number :: self.shards] = np.cumsum(sizes) - sizes
        return offsets

    def files(self) -> dict[str, int]:
        """Bytes of each shard by its name."""
        sizes = [int(self.sizes[number :: self.shards].sum()) for number in range(self.shards)]
        return {shard_name(number): size for number, size in enumerate(sizes)}

    def agrees(self, other: CachePlan) -> bool:
        """The same values of the same sequences, which the other one may have each for itself.

        How many shards hold them makes no difference.
        """
        mine, theirs = (
            (plan.hidden, plan.dtype, plan.first_layer, plan.fingerprint) for plan in (self, other)
        )
        whole = other.segments.is_flat and np.array_equal(self.lengths, other.lengths)
        return mine == theirs and (whole or self.segments.same(other.segments))

    def write_index(self, folder: Path, complete: bool) -> None:
        """Write index.json beside lengths.npy and tree.npy, whole."""
        segments = self.segments
        content = {
            "format": FORMAT,
            "complete": complete,
            "fingerprint": self.fingerprint,
            "first_layer": self.first_layer,
            "hidden": self.hidden,
            "dtype": str(self.dtype).removeprefix("torch."),
            "sequences": len(segments.ends),
            "tokens": segments.tokens_asked,
            "segments": len(segments.lengths),
            "tokens_stored": segments.tokens,
            "lengths_sha256": fingerprints.of_file(folder / LENGTHS),
            "tree_sha256": None if segments.is_flat else fingerprints.of_file(folder / TREE),
            "shards": [{"name": name, "bytes": size} for name, size in self.files().items()],
        }
        write_json(folder / INDEX, content)


def read_plan(folder: Path) -> tuple[CachePlan, bool]:
    """The plan in a folder and whether it is complete. Raises UserError where its files do not fit it."""
    if not (folder / INDEX).exists():
        raise UserError(f"there is no prefix cache in {folder}", REMAKE)
    try:
        index: Any = read_json(folder / INDEX)
    except UserError as error:
        raise UserError(error.message, REMAKE) from error
    try:
        if index["format"] not in (FORMAT, SEQUENCES_WHOLE):
            raise UserError(f"{folder / INDEX} has format {index['format']}, known is {FORMAT}", REMAKE)
        tree_sum = index["tree_sha256"] if index["format"] == FORMAT else None
        for name, known in ((LENGTHS, index["lengths_sha256"]), (TREE, tree_sum)):
            # Without a tree nothing is shared.
            if (name == LENGTHS or known is not None) and fingerprints.of_file(folder / name) != known:
                raise UserError(f"{folder / name} has other content than when it was written", REMAKE)
        shards = {item["name"]: item["bytes"] for item in index["shards"]}
        plan = CachePlan(
            _read_segments(folder, tree_sum is not None),
            int(index["hidden"]),
            DTYPES[index["dtype"]],
            int(index["first_layer"]),
            str(index["fingerprint"]),
            len(shards),
        )
        if shards != plan.files() or not isinstance(index["complete"], bool):
            raise ValueError("its entries contradict each other")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing", REMAKE) from error
    except (KeyError, TypeError, ValueError, OverflowError, EOFError) as error:
        raise UserError(f"{folder / INDEX} is damaged: {error!r}", REMAKE) from error
    count = len(plan.segments.lengths)
    beside = {WRITTEN: count, SUMS: SUM.itemsize * count}
    for name, size in {**shards, **beside}.items():
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing", REMAKE)
        if (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name} has another size than when it was written", REMAKE)
    return plan, index["complete"]


def _read_segments(folder: Path, with_tree: bool) -> Segments:
    lengths = np.load(folder / LENGTHS, allow_pickle=False)
    if not with_tree:
        return Segments.alone(lengths)
    return Segments(lengths, *np.split(np.load(folder / TREE, allow_pickle=False), [len(lengths)]))
