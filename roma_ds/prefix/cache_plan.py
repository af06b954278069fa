"""What a prefix cache holds and where in its files: known before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
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
from roma_ds.storage import fingerprint as fingerprints
from roma_ds.storage.atomic import read_json, write_json

FORMAT = 2
INDEX, LENGTHS, WRITTEN, SUMS = "index.json", "lengths.npy", "written.bin", "checksums.bin"
SUM = np.dtype("<u4")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "uint8": torch.uint8,
}
REMAKE = "rerun the command that makes it, or train.prefix_cache=off"


def disk_bytes(lengths: Sequence[int] | NDArray[np.int64], entering: Entering) -> int:
    """Bytes on disk of a cache for sequences of these lengths, but for a few hundred of headers."""
    return cache_bytes(int(np.sum(lengths, dtype=np.int64)), len(lengths), entering.token_bytes)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"hidden-{number:05d}.bin"


@dataclass(frozen=True, eq=False)
class CachePlan:
    """What a cache holds and where."""

    lengths: NDArray[np.int64]
    """[sequences], tokens of each"""
    hidden: int
    """Columns of a sequence's table."""
    dtype: torch.dtype
    """uint8 where more than hidden states is kept, as `Entering` has it."""
    first_layer: int
    """The layer that the values enter."""
    fingerprint: str
    """Of everything that the values were made from."""
    shards: int

    def __post_init__(self) -> None:
        if self.lengths.dtype != np.int64 or self.lengths.ndim != 1 or (self.lengths < 0).any():
            raise ValueError("lengths are no list of whole numbers from 0")
        if self.hidden < 1 or self.shards < 1 or self.dtype not in DTYPES.values():
            raise ValueError(f"no cache of {self.hidden} {self.dtype} values in {self.shards} shards")

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[sequences], bytes of each"""
        return self.lengths * (self.hidden * self.dtype.itemsize)

    @property
    def disk_bytes(self) -> int:
        """On disk, but for a few hundred of headers."""
        token_bytes = self.hidden * self.dtype.itemsize
        return cache_bytes(int(self.lengths.sum()), len(self.lengths), token_bytes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[sequences], byte in its shard at which a sequence starts"""
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
        """The same values of the same sequences; how many shards hold them makes no difference."""
        mine, theirs = (
            (plan.hidden, plan.dtype, plan.first_layer, plan.fingerprint) for plan in (self, other)
        )
        return mine == theirs and np.array_equal(self.lengths, other.lengths)

    def write_index(self, folder: Path, complete: bool) -> None:
        """Write index.json beside lengths.npy, whole."""
        content = {
            "format": FORMAT,
            "complete": complete,
            "fingerprint": self.fingerprint,
            "first_layer": self.first_layer,
            "hidden": self.hidden,
            "dtype": str(self.dtype).removeprefix("torch."),
            "sequences": len(self.lengths),
            "tokens": int(self.lengths.sum()),
            "lengths_sha256": fingerprints.of_file(folder / LENGTHS),
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
        if index["format"] != FORMAT:
            raise UserError(f"{folder / INDEX} has format {index['format']}, known is {FORMAT}", REMAKE)
        if fingerprints.of_file(folder / LENGTHS) != index["lengths_sha256"]:
            raise UserError(f"{folder / LENGTHS} has other content than when it was written", REMAKE)
        shards = {item["name"]: item["bytes"] for item in index["shards"]}
        plan = CachePlan(
            np.load(folder / LENGTHS, allow_pickle=False),
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
    beside = {WRITTEN: len(plan.lengths), SUMS: SUM.itemsize * len(plan.lengths)}
    for name, size in {**shards, **beside}.items():
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing", REMAKE)
        if (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name} has another size than when it was written", REMAKE)
    return plan, index["complete"]
