"""Prefix caches of sequences that begin alike, and what is written to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cache_folders import entering, values
from hypothesis import strategies as st

from roma_ds.prefix.prefix_cache import PrefixCache, plan_cache
from roma_ds.prefix.segments import Segments
from roma_ds.sequences.batches import read_ids
from roma_ds.sequences.encoding import Encoded, Prompt
from roma_ds.sequences.request_set import requests_of

HIDDEN = 3
DTYPE = torch.bfloat16


@st.composite
def related(draw: st.DrawFn) -> list[Encoded]:
    """Sequences, many of which begin as another one does; equal ones and beginnings of others among them."""
    found: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 10))):
        base: tuple[int, ...] = ()
        if found and draw(st.booleans()):
            other = draw(st.sampled_from(found))
            base = other[: draw(st.integers(0, len(other)))]
        own = draw(st.lists(st.integers(0, 2), max_size=draw(st.sampled_from((0, 2, 30)))))
        found.append((*base, *own) or (0,))
    return [Encoded(row, ids, (9,)) for row, ids in enumerate(found)]


def states(sequence: Encoded) -> torch.Tensor:
    """[length, HIDDEN], the same wherever the same tokens come before: any bit pattern."""
    ids = read_ids(sequence)
    rows = [values(hash(ids[: place + 1]) % (1 << 32), 1, HIDDEN, DTYPE) for place in range(len(ids))]
    return torch.cat(rows)


def made(folder: Path, sequences: list[Encoded], shards: int = 1, shared: bool = True) -> PrefixCache:
    """Planned, and nothing written."""
    cut = Segments.of(sequences, shared)
    return plan_cache(folder, cut, entering(HIDDEN, DTYPE), 1, "f", shards)


def written(folder: Path, sequences: list[Encoded], shards: int = 1) -> PrefixCache:
    """Finished."""
    cache = made(folder, sequences, shards)
    for number, sequence in enumerate(sequences):
        cache.write(number, states(sequence))
    cache.finish()
    return cache


OPTIONS = 4


def four_options(questions: int = 25, before: int = 30, option: int = 4) -> list[Encoded]:
    """As ARC-Easy has them, scored by text: `before` tokens, then each of four options of `option`."""
    random = np.random.default_rng(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.integers(0, 50_000, count).tolist())

    prompts = []
    for row in range(questions):
        options = tuple(ids(option) for _ in range(OPTIONS))
        prompts.append(Prompt(row, ids(before), options[1], options, 1, False))
    return list(requests_of(prompts).sequences)
