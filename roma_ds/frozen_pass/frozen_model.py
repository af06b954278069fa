"""The network without training, on all ranks: routing weights and option log-likelihoods of many samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.loaded_weights import check_loaded, refuse_not_finite
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.families import MoELayout, detect
from roma_ds.frozen_pass.kept_codes import keeps_codes
from roma_ds.network.buffers import exact_buffers
from roma_ds.network.release import release, return_freed_memory
from roma_ds.network.routed import RoutedLM, RoutedOutput
from roma_ds.network.router_weights import RouterWeights
from roma_ds.prefix.feed import CachePart, Feed
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.progress import Progress
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.found import Record
from roma_ds.sequences.request_set import read_results, requests_of
from roma_ds.sequences.scores import Scores

MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")
OF_TRAINING = (*MONITORS, "wall_clock_breakdown", "flops_profiler", "memory_breakdown")
"""Sections of a DeepSpeed config that speak of training steps, of which a frozen network has none."""


def is_zero3(ds: Mapping[str, Any]) -> bool:
    """Whether a resolved DeepSpeed config partitions the weights."""
    return int(ds.get("zero_optimization", {}).get("stage", 0)) == 3


def load_part(
    world: World,
    model: ModelConfig,
    depth: int,
    first: int | None,
    zero3: dict[str, Any] | None,
    stored: bool = False,
) -> tuple[Any, MoELayout]:
    """The whole network, or with `first` the part from that layer on, and its routers. A collective.

    depth: layers of the whole. stored: experts stay as they are stored where model.frozen lets them. Raises
    UserError where it asks for that and none can.
    """
    # What is fed with hidden states needs no embedding, from layer 0 on neither.
    span = Span.suffix(0, depth) if first is None else Span(first, depth, embedding=False, head=True)
    with agreement(world):
        stored = stored and keeps_codes(model, zero3, world.device)
    network = load_span(model, span, zero3, world.device, world, stored)
    with agreement(world):
        files = CheckpointFiles(model)
        layout = stored_layout(detect(network, range(first or 0, depth)), files)
        check_loaded(network, layout, files, world)
        refuse_not_finite(network, world.rank)
    return network, layout


class FrozenModel:
    """The network without training: whole on each rank below ZeRO stage 3, partitioned at stage 3."""

    def __init__(
        self, world: World, model: ModelConfig, ds: Mapping[str, Any], first: int | None = None
    ) -> None:
        """first: run the part from this layer on, on cached hidden states."""
        self.world = world
        self.partitioned = is_zero3(ds)
        with agreement(world):
            whole = blueprint(model)
        zero3 = dict(ds) if self.partitioned else None
        network, self.layout = load_part(world, model, whole.depth, first, zero3, stored=True)
        self.routed = RoutedLM(network, self.layout, self.layout.layers, first or 0)
        self._call: Any = self.routed
        if self.partitioned:
            import deepspeed

            plain = {key: deepcopy(value) for key, value in ds.items() if key not in OF_TRAINING}
            with exact_buffers(self.routed):
                self._call, *_ = deepspeed.initialize(model=self.routed, config=plain)
        self.routed.attach()
        self._weights = RouterWeights(world, self.routed.routers(), self.layout.sites, self.partitioned)

    def close(self) -> None:
        """Give back the memory."""
        if self.partitioned:
            self._call.destroy()
        self._call = None
        release(self.routed)
        return_freed_memory()

    def use_routers(self, weights: Mapping[int, torch.Tensor]) -> None:
        """Put router weights [experts, hidden] by layer number in place; other layers get back their own.

        Raises UserError when a layer or a shape does not fit this model. A collective under ZeRO-3.
        """
        self._weights.use(weights)

    def forward(self, **inputs: Any) -> RoutedOutput:
        """One pass, as `RoutedLM.forward`. A collective under ZeRO-3."""
        output: RoutedOutput = self._call(**inputs)
        return output

    def outputs(
        self, feed: Feed, batches: Sequence[Sequence[int]], title: str
    ) -> Iterator[tuple[Sequence[int], Batch, RoutedOutput]]:
        """Run this rank's share of `batches` of sequence numbers, the same on every rank. A collective.

        Ranks share batches, not sequences: what lies in one batch, and with it the last bits of a result, is
        the same on any number of ranks.
        """
        mine = [batches[index] for index in self.world.share(len(batches))]
        rounds = math.ceil(len(batches) / self.world.size)
        with Progress(sum(map(len, mine)), title, enabled=self.world.is_first) as progress:
            for turn in range(rounds):
                # Under ZeRO-3 every forward is a collective: a rank with nothing left still takes part.
                numbers = mine[turn] if turn < len(mine) else ()
                batch = feed.batch(numbers)
                with torch.no_grad():
                    output = self.forward(**batch.inputs(self.world.device))
                if numbers:
                    yield numbers, batch, output
                    progress.advance(len(numbers))

    def score(
        self,
        prompts: Sequence[Prompt],
        tokens: str,
        batch_size: int,
        title: str,
        cache: PrefixCache | CachePart | None = None,
    ) -> Scores | None:
        """Score every prompt; the result is complete on rank 0 and None elsewhere.

        tokens: which prompt tokens make up the routing weights, as `roma.tokens`. cache: the hidden states of
        `requests_of(prompts)`, for a suffix, which then gives the routing of its own layers. A collective.
        """
        requests = requests_of(prompts)
        shared = self.layout.family.shares_tokens
        feed = Feed(requests.sequences, tokens, cache, shared)
        found: list[Record] = []
        read = 0
        batches = requests.batches(batch_size, shared)
        for numbers, batch, output in self.outputs(feed, batches, title):
            found.extend(read_results(requests, numbers, output.rows, output.routing, output.row))
            read += batch.asked
        gathered = self.world.gather_to_first((found, read))
        if gathered is None:
            return None
        results = [item for part, _ in gathered for item in part]
        return Scores.assemble(prompts, results, tokens_read=sum(count for _, count in gathered))
