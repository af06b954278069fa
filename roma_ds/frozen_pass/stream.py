"""The frozen pass layer by layer: all batches go through one layer before the next one is taken up.

A rank holds two layers at most, the one at work and the one being read, whatever the size of the model, and
needs no other rank. What a finished layer gave is on disk, so that a killed pass goes on behind it.

Steps: 0 is the embedding, step i + 1 is decoder layer i, the last one is what follows the layers.
Shapes: B sequences, T tokens in all, A predicted tokens, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roma_ds.checkpoint.blueprint import Blueprint
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loaded_weights import refuse_not_finite
from roma_ds.checkpoint.read_ahead import ReadAhead
from roma_ds.checkpoint.span import Span, SpanLoader
from roma_ds.comm import World
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import detect
from roma_ds.families.entering import Entering
from roma_ds.frozen_pass.activations import Activations
from roma_ds.frozen_pass.stream_journal import StreamJournal
from roma_ds.network.release import release
from roma_ds.network.routed import RoutedLM
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.progress import Progress
from roma_ds.sequences.batches import Batch, collate, tokens_run
from roma_ds.sequences.found import Found, Record
from roma_ds.sequences.packing import pack
from roma_ds.sequences.request_set import Requests, read_results
from roma_ds.storage import fingerprint as fingerprints

SAVE_SECONDS = 60.0
"""Time between copies on disk of hidden states that are held in memory."""


@dataclass(frozen=True)
class StreamPass:
    """One rank's pass over its own batches."""

    world: World
    """For device and rank: a pass exchanges nothing."""
    model: ModelConfig
    whole: Blueprint
    requests: Requests
    batches: Sequence[Sequence[int]]
    """Numbers of the sequences in each batch of this rank; the same again for a killed pass to go on."""
    tokens: str
    """Prompt positions whose routing is read, as `roma.tokens`."""
    shared: bool
    """What sequences of a batch begin with in common is run once."""
    cache: PrefixCache | None
    """Takes the hidden states that enter its first layer."""
    folder: Path
    """Of this rank alone; the caller deletes it once the results of all ranks are safe."""
    fingerprint: str
    """Of everything that the results depend on."""
    activation_bytes: int
    """Hidden states between two layers that are held in memory; more are kept on disk, in two files."""
    title: str
    save_seconds: float = SAVE_SECONDS

    def run(self) -> Found:
        """Results of all sequences in `batches`, which the cache has by then on disk. No collective.

        Raises UserError as `load_span` does, and EnvironmentFault when memory or disk do not suffice: what
        was finished before it serves the next run.
        """
        layout = self.whole.layout
        if not self.batches:
            return Found.from_records([], len(layout.layers), layout.experts)
        journal = StreamJournal(self.folder, self._fingerprint())
        if journal.steps and not self._usable(journal):
            journal.restart()
        if journal.steps == self._steps:
            return journal.result()
        with torch.no_grad():
            return _Run(self, journal).run()

    @property
    def _steps(self) -> int:
        return self.whole.depth + 2

    def _fingerprint(self) -> str:
        numbers = [list(batch) for batch in self.batches]
        return fingerprints.of_json(
            [self.fingerprint, self.tokens, self.model.dtype, self._steps, self.shared, numbers]
        )

    def _usable(self, journal: StreamJournal) -> bool:
        """Whether what the recorded steps gave is there."""
        finished = range(journal.steps - 1)
        if self.cache is not None and self.cache.plan.first_layer in finished:
            mine = [number for batch in self.batches for number in batch]
            if np.isin(self.cache.missing(), mine).any():
                return False
        if journal.steps == self._steps:
            try:
                journal.result()
            except UserError:
                return False
            return True
        layers = set(self.whole.layout.layers) & set(finished)
        return all(journal.routing_path(layer).exists() for layer in layers)


class _Run:
    """The part of a pass that is still to be done."""

    def __init__(self, job: StreamPass, journal: StreamJournal) -> None:
        self.job, self.journal, self.device = job, journal, job.world.device
        sequences = job.requests.sequences
        self.tokens = [
            tokens_run([sequences[number] for number in batch], job.shared) for batch in job.batches
        ]
        self.answers = [sum(len(sequences[number].continuation) for number in batch) for batch in job.batches]
        self.store = Activations(
            journal.folder,
            self.tokens,
            self._tables(),
            job.activation_bytes,
        )
        if journal.steps:
            try:
                self.store.restore(journal.file, journal.steps, self._rows(journal.steps))
            except UserError:
                journal.restart()
        self.saved_at = time.monotonic()
        self._collated: dict[int, Batch] = {}

    def _tables(self) -> list[Entering]:
        """What enters each step; the embedding reads nothing that is kept."""
        whole = self.job.whole
        layers = [whole.entering(layer) for layer in range(whole.depth)]
        return [layers[0], *layers, whole.layout.family.leaving(whole.config, whole.dtype)]

    def _rows(self, step: int) -> list[int]:
        """Rows of each batch that enter a step: all tokens, or at the head those that predict one."""
        return self.answers if step == self.job.whole.depth + 1 else self.tokens

    def _batch(self, index: int) -> Batch:
        if index in self._collated:
            return self._collated[index]
        sequences = self.job.requests.sequences
        chosen = [sequences[number] for number in self.job.batches[index]]
        batch = collate(chosen, self.job.tokens, self.job.shared)
        if self.store.in_memory:
            self._collated[index] = batch
        return batch

    def run(self) -> Found:
        job, steps = self.job, range(self.journal.steps, self.job.whole.depth + 2)
        samples = sum(map(len, job.batches))
        total = len(steps) * samples
        records: list[Record] = []
        with Progress(total, job.title, "layers x samples", enabled=job.world.is_first) as self.progress:
            with ReadAhead(self._loader, steps) as ahead:
                for step in steps:
                    if step < steps[-1]:
                        self._through(step, ahead.take())
                    else:
                        records = self._head(ahead.take())
        found = Found.from_records(records, 0, job.whole.layout.experts)
        layers = job.whole.layout.layers
        routing = np.empty((len(found), len(layers), job.whole.layout.experts), np.float16)
        for place, layer in enumerate(layers):
            routing[:, place] = self.journal.routing(layer)
        found = replace(found, routing=routing)
        self.journal.finish(found, len(steps) + steps[0])
        self.store.remove()
        return found

    def _loader(self, step: int, files: CheckpointFiles | None) -> SpanLoader:
        depth = self.job.whole.depth
        if step == 0:
            span = Span(0, 0, embedding=True, head=False)
        elif step <= depth:
            span = Span(step - 1, step, embedding=False, head=False)
        else:
            span = Span(depth, depth, embedding=False, head=True)
        return SpanLoader(self.job.model, span, self.device, files)

    def _through(self, step: int, network: Any) -> None:
        """All batches through the embedding or a decoder layer, and what that gave, on disk."""
        job, layer, cache = self.job, step - 1, self.job.cache
        refuse_not_finite(network, job.world.rank)
        held = range(max(0, layer), step)
        layout = detect(network, held)
        routed = RoutedLM(network, layout, layout.layers, held.start).attach()
        rows = self._rows(step)
        routings = []
        for index, numbers in enumerate(job.batches):
            batch = self._batch(index)
            if step:
                table = self.store.read(step, index, rows[index])
                batch = replace(batch, entering=table)
                if cache is not None and layer == cache.plan.first_layer:
                    lengths = [job.requests.sequences[number].length for number in numbers]
                    for number, piece in zip(numbers, batch.apart(table, lengths), strict=True):
                        cache.write(number, piece)
            leaving, routing = routed.through(step, **batch.inputs(self.device))
            self.store.write(index, leaving)
            if layout.layers:
                routings.append(routing[:, 0].to(torch.float16).cpu().numpy())
            self.progress.advance(len(numbers))
        release(network)
        if routings:
            self.journal.keep_routing(layer, np.concatenate(routings))
        if cache is not None and layer == cache.plan.first_layer:
            cache.flush()
        self.store.turn()
        if not self.store.in_memory or time.monotonic() - self.saved_at >= job.save_seconds:
            self.journal.record(step + 1, self.store.save())
            self.store.tidy()
            self.saved_at = time.monotonic()

    def _head(self, network: Any) -> list[Record]:
        refuse_not_finite(network, self.job.world.rank)
        depth, layout = self.job.whole.depth, self.job.whole.layout
        routed = RoutedLM(network, detect(network, ()), (), depth - 1)
        records: list[Record] = []
        for index, numbers in enumerate(self.job.batches):
            answers = self.answers[index]
            every, batch = torch.arange(answers), self._batch(index)
            # Each answer token is a sequence of its own: nothing looks back behind the layers.
            alone = replace(
                batch,
                input_ids=batch.input_ids[batch.answer_position],
                position_ids=torch.zeros_like(every),
                packing=pack([1] * answers, every),
                answer_position=every,
                entering=self.store.read(depth + 1, index, answers),
            )
            logits = routed(**alone.inputs(self.device)).logits
            none = torch.empty(len(numbers), 0, layout.experts)
            records += read_results(self.job.requests, numbers, logits, none)
            self.progress.advance(len(numbers))
        return records
