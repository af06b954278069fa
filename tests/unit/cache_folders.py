"""Prefix caches of random bits, and what their folders hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from roma_ds.families.entering import Entering
from roma_ds.prefix.prefix_cache import PrefixCache, plan_cache
from roma_ds.prefix.segments import Segments

MIB = 1 << 20
LENGTHS = [3, 0, 5, 1, 4, 2, 7]
BESIDE = ("checksums.bin", "index.json", "lengths.npy", "written.bin")
"""Files of a cache beside its shards."""


def values(sequence: int, length: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Every bit pattern may occur, NaN and infinity too."""
    bits = np.random.default_rng(sequence).integers(0, 256, length * hidden * dtype.itemsize, np.uint8)
    made = torch.empty(length, hidden, dtype=dtype)
    made.view(-1).view(torch.uint8).copy_(torch.from_numpy(bits))
    return made


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def entering(hidden: int, dtype: torch.dtype) -> Entering:
    return Entering.alone(hidden, str(dtype).removeprefix("torch."))


def plan(folder: Path, fingerprint: str = "abc", **changes: Any) -> PrefixCache:
    given_plan: dict[str, Any] = {
        "lengths": LENGTHS,
        "hidden": 6,
        "dtype": torch.bfloat16,
        "first_layer": 2,
        "shards": 2,
    }
    asked = {**given_plan, **changes}
    lengths = asked.pop("lengths")
    asked.setdefault("segments", Segments.alone(lengths))
    table = entering(asked.pop("hidden"), asked.pop("dtype"))
    return plan_cache(folder, fingerprint=fingerprint, entering=table, **asked)


def fill(cache: PrefixCache, sequences: list[int] | None = None) -> None:
    for sequence in range(len(cache.plan.lengths)) if sequences is None else sequences:
        length = int(cache.plan.lengths[sequence])
        cache.write(sequence, values(sequence, length, cache.plan.hidden, cache.plan.dtype))


def finished(folder: Path, fingerprint: str = "abc", **changes: Any) -> PrefixCache:
    cache = plan(folder, fingerprint, **changes)
    fill(cache)
    cache.finish()
    return cache


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def assert_holds_all(cache: PrefixCache) -> None:
    for sequence, length in enumerate(cache.plan.lengths):
        expected = values(sequence, int(length), cache.plan.hidden, cache.plan.dtype)
        assert same(cache.read([sequence]), expected)


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
