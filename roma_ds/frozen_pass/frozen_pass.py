"""One pass of the pretrained model over a set of prompts: scores, routing, and the prefix cache.

A killed pass goes on: what was saved is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roma_ds.checkpoint.blueprint import Blueprint
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.errors import Interrupted
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.frozen_pass.parts import Parts
from roma_ds.frozen_pass.stream import StreamPass
from roma_ds.planner.frozen_pass import Engine
from roma_ds.prefix.feed import Feed
from roma_ds.prefix.prefix_cache import PrefixCache, open_plan, plan_cache
from roma_ds.prefix.segments import Segments
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.found import Found, Record
from roma_ds.sequences.request_set import Requests, read_results, requests_of
from roma_ds.sequences.scores import Scores


@dataclass(frozen=True)
class FrozenPass:
    """How to run the pretrained model over prompts."""

    world: World
    model: ModelConfig
    whole: Blueprint
    engine: Engine
    """`zero3`: as DeepSpeed holds the network, whole or partitioned; `stream`: layer by layer."""
    network: Callable[[], FrozenModel]
    """The whole network, for the engine `zero3`."""
    tokens: str
    """Prompt positions whose routing is read, as `roma.tokens`."""
    batch_size: int
    first: int | None
    """Keep the hidden states that enter this layer; None keeps none."""
    activation_bytes: int
    """Activations that the stream engine holds in memory; more go to disk."""
    save_every: float
    """Seconds between saves of what is in memory."""
    say: Callable[[str], None] = field(default=lambda line: None)
    """Takes lines for the user, on rank 0."""

    def run(
        self, prompts: Sequence[Prompt], cache_folder: Path, work: Path, fingerprint: str, title: str
    ) -> Scores | None:
        """Score every prompt; complete on rank 0 and None elsewhere. A collective.

        The hidden states of `requests_of(prompts)` go to a prefix cache in `cache_folder`; `work` holds what
        an unfinished pass has; fingerprint: of all that the results depend on, but for the engine.
        Raises EnvironmentFault when the disk is too small, before anything there is touched.
        """
        world, requests = self.world, requests_of(prompts)
        parts = Parts(work)
        cache = None
        with agreement(world):
            if world.is_first:
                cache = self._plan(requests, cache_folder, fingerprint)
                keep = cache is None or cache.resumed
                parts.prepare(_identity(fingerprint, self.tokens, self.engine), keep)
                if self._shared and (line := requests.sharing(self.batch_size)):
                    self.say(f"{title}: {line}")
        with agreement(world):
            if self.first is not None and not world.is_first:
                cache = open_plan(cache_folder, fingerprint)
        if self.engine == "stream":
            self._stream(requests, cache, parts, title, fingerprint)
        else:
            self._resident(requests, cache, parts, title)
        world.barrier()
        scores = None
        with agreement(world):
            if world.is_first:
                if cache is not None:
                    cache.finish()
                records = [record for part in parts for record in part.records()]
                scores = Scores.assemble(prompts, records, tokens_read=sum(requests.lengths))
        return scores

    @property
    def _shared(self) -> bool:
        return self.whole.layout.family.shares_tokens

    def _plan(self, requests: Requests, folder: Path, fingerprint: str) -> PrefixCache | None:
        if self.first is None:
            return None
        return plan_cache(
            folder,
            Segments.of(requests.sequences, self._shared),
            self.whole.entering(self.first),
            self.first,
            fingerprint,
            self.world.size,
        )

    def _pending(self, requests: Requests, cache: PrefixCache | None, parts: Parts) -> list[list[int]]:
        """The batches to run: the same on every rank, whoever ran the others."""
        done: set[tuple[int, int]] = set()
        for part in parts:
            done.update(zip(part.row.tolist(), part.option.tolist(), strict=True))
        lacking = set(cache.missing().tolist()) if cache is not None else set()
        pending = []
        for batch in requests.batches(self.batch_size, self._shared):
            places = ((requests.sequences[number].row, requests.options[number]) for number in batch)
            if not lacking.isdisjoint(batch) or not done.issuperset(places):
                pending.append(batch)
        return pending

    def _resident(self, requests: Requests, cache: PrefixCache | None, parts: Parts, title: str) -> None:
        world = self.world
        with agreement(world):
            pending = self._pending(requests, cache, parts) if world.is_first else []
        pending = world.from_first(pending)
        if not pending:
            return
        frozen = self.network()
        if self.first is not None:
            frozen.routed.capture(self.first)
        layout = self.whole.layout
        saver = _Saver(world.rank, len(layout.layers), layout.experts, cache, parts)
        feed = Feed(requests.sequences, self.tokens, shared=self._shared)
        with saver:
            for numbers, batch, output in frozen.outputs(feed, pending, title):
                if cache is not None and output.entering is not None:
                    pieces = batch.apart(output.entering, [requests.lengths[number] for number in numbers])
                    for number, piece in zip(numbers, pieces, strict=True):
                        cache.write(number, piece)
                saver.records += read_results(requests, numbers, output.rows, output.routing, output.row)
                if time.monotonic() - saver.saved_at > self.save_every:
                    saver.save()

    def _stream(
        self, requests: Requests, cache: PrefixCache | None, parts: Parts, title: str, fingerprint: str
    ) -> None:
        """Each rank drives its own batches through the layers."""
        rank, size = self.world.rank, self.world.size
        batches = requests.batches(self.batch_size, self._shared)
        with agreement(self.world):
            found = StreamPass(
                world=self.world,
                model=self.model,
                whole=self.whole,
                requests=requests,
                batches=[batches[index] for index in self.world.share(len(batches))],
                tokens=self.tokens,
                shared=self._shared,
                cache=cache,
                folder=parts.folder / f"stream-{rank}-of-{size}",
                fingerprint=fingerprint,
                activation_bytes=self.activation_bytes,
                title=title,
                save_seconds=self.save_every,
            ).run()
            parts.add(found, rank)


def begun_engine(work: Path, fingerprint: str, tokens: str) -> Engine | None:
    """The engine whose results of an unfinished pass lie in `work`; None where there are none.

    fingerprint: as `FrozenPass.run` takes it; tokens: as `FrozenPass` does.
    """
    engines: tuple[Engine, ...] = ("zero3", "stream")
    found = Parts(work).of()
    return next((one for one in engines if found == _identity(fingerprint, tokens, one)), None)


def _identity(fingerprint: str, tokens: str, engine: Engine) -> str:
    """Passes of the same one may put their results together."""
    return f"{fingerprint}-{tokens}-{engine}"


@dataclass
class _Saver:
    """Results of this rank that are not on disk yet; saved on the way, at the end, and on a signal."""

    rank: int
    layers: int
    experts: int
    cache: PrefixCache | None
    parts: Parts
    records: list[Record] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)

    def save(self) -> None:
        """First the hidden states, then the results that say that they are there."""
        if self.cache is not None:
            self.cache.flush()
        if self.records:
            self.parts.add(Found.from_records(self.records, self.layers, self.experts), self.rank)
        self.records, self.saved_at = [], time.monotonic()

    def __enter__(self) -> _Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or issubclass(kind, Interrupted):
            self.save()
