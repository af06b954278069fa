"""A model and prompts for the stream engine, and what the whole network gives for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_runs import stock_network

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config import ModelConfig
from roma_ds.frozen_pass.stream import StreamPass
from roma_ds.network.routed import RoutedLM
from roma_ds.prefix.prefix_cache import PrefixCache, plan_cache
from roma_ds.prefix.segments import Segments
from roma_ds.sequences.batches import collate
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.found import COLUMNS, Found
from roma_ds.sequences.request_set import read_results, requests_of

DEPTH = 4
CPU = torch.device("cpu")
WORLD = World(Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1), CPU)


def made_up_prompts(count: int = 23) -> list[Prompt]:
    """Options of one token, of several tokens, and free text, at many lengths."""
    random = np.random.default_rng(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(int(token) for token in random.integers(3, 180, length))

    prompts = []
    for row in range(count):
        options = {0: ((5,), (6,), (7,)), 1: (ids(2), ids(1), ids(3)), 2: ()}[row % 3]
        target = options[row % 2] if options else ids(1 + row % 4)
        prompts.append(Prompt(row, ids(int(random.integers(2, 40))), target, options, row % 2, False))
    return prompts


class Setting:
    """A model and prompts, to be run in several ways."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        dtype: str = "float32",
        tokens: str = "last1",
        shared: bool = False,
    ) -> None:
        self.model = ModelConfig(path=str(model), dtype=dtype)  # type: ignore[arg-type]
        self.folder, self.tokens = folder, tokens
        self.whole = blueprint(self.model)
        self.requests = requests_of(made_up_prompts())
        self.shared = shared
        self.batches = self.requests.batches(4, shared)
        self.first = 2

    def plan(self, name: str) -> PrefixCache:
        return plan_cache(
            self.folder / name,
            Segments.of(self.requests.sequences, self.shared),
            self.whole.entering(self.first),
            self.first,
            "all",
            2,
        )

    def streamed(self, name: str = "work", cache: PrefixCache | None = None, **changes: Any) -> StreamPass:
        job = StreamPass(
            world=WORLD,
            model=self.model,
            whole=self.whole,
            requests=self.requests,
            batches=self.batches,
            tokens=self.tokens,
            shared=self.shared,
            cache=cache,
            folder=self.folder / name,
            fingerprint="all",
            activation_bytes=1 << 30,
            title="Streaming",
        )
        return replace(job, **changes)

    def resident(self) -> tuple[Found, dict[int, torch.Tensor]]:
        """What the whole network gives on the same batches, and the hidden states by sequence."""
        network = stock_network(self.model)
        routed = RoutedLM(network, self.whole.layout, self.whole.layout.layers)
        routed.capture(self.first)
        routed.attach()
        records, hidden = [], {}
        for numbers in self.batches:
            chosen = [self.requests.sequences[number] for number in numbers]
            batch = collate(chosen, self.tokens, self.shared)
            with torch.no_grad():
                output = routed(**batch.inputs(CPU))
            records += read_results(self.requests, numbers, output.logits, output.routing)
            assert output.entering is not None
            pieces = batch.apart(output.entering, [self.requests.lengths[number] for number in numbers])
            hidden |= dict(zip(numbers, pieces, strict=True))
        layout = self.whole.layout
        return Found.from_records(records, len(layout.layers), layout.experts), hidden


def assert_same(one: Found, other: Found) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def shards(cache: PrefixCache) -> list[bytes]:
    return [path.read_bytes() for path in sorted(cache.folder.glob("hidden-*.bin"))]
