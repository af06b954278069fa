"""The frozen pass layer by layer: all batches go through one layer before the next one is taken up.

A rank holds two layers at most, the one at work and the one being read, whatever the size of the model, and
needs no other rank. What a finished layer gave is on disk, so that a killed pass goes on behind it.

Steps: 0 is the embedding, step i + 1 is decoder layer i, the last one is the final norm and the head.
Shapes: B sequences, T tokens in all, A predicted tokens, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from roma_ds.frozen_pass.activations import Activations
from roma_ds.frozen_pass.stream_journal import StreamJournal
from roma_ds.network.frozen_modules import use_frozen_modules
from roma_ds.network.head import logits_of
from roma_ds.network.release import release
from roma_ds.network.routed import RoutedLM
from roma_ds.network.routing_weights import routing_weights
from roma_ds.prefix.prefix_cache import PrefixCache
from roma_ds.progress import Progress
from roma_ds.sequences.batches import Batch, collate
from roma_ds.sequences.found import Found, Record
from roma_ds.sequences.request_set import Requests, read_results
from roma_ds.storage import fingerprint as fingerprints

SAVE_SECONDS = 60.0
"""Time between copies on disk of hidden states that are held in memory."""

Layer = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""From a batch and the hidden states [T, hidden] that enter: those that leave, and routing float32 [B, E]."""


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
        return fingerprints.of_json([self.fingerprint, self.tokens, self.model.dtype, self._steps, numbers])

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
        self.tokens = [sum(sequences[number].length for number in batch) for batch in job.batches]
        self.answers = [sum(len(sequences[number].continuation) for number in batch) for batch in job.batches]
        self.store = Activations(
            journal.folder,
            self.tokens,
            job.whole.hidden,
            getattr(torch, job.model.dtype),
            job.activation_bytes,
        )
        if journal.steps:
            try:
                self.store.restore(journal.file, self._rows(journal.steps))
            except UserError:
                journal.restart()
        self.saved_at = time.monotonic()
        self._collated: dict[int, Batch] = {}

    def _rows(self, step: int) -> list[int]:
        """Rows of each batch that enter a step: all tokens, or at the head those that predict one."""
        return self.answers if step == self.job.whole.depth + 1 else self.tokens

    def _batch(self, index: int) -> Batch:
        if index in self._collated:
            return self._collated[index]
        sequences = self.job.requests.sequences
        batch = collate([sequences[number] for number in self.job.batches[index]], self.job.tokens)
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
        """All batches through the embedding or a decoder layer, and what that gave on disk."""
        job, layer, cache = self.job, step - 1, self.job.cache
        refuse_not_finite(network, job.world.rank, max(0, layer))
        work = self._embedding(network) if step == 0 else self._layer(network, layer)
        rows = self._rows(step)
        routings = []
        for index, numbers in enumerate(job.batches):
            batch = self._batch(index)
            hidden = self.store.read(index, rows[index]) if step else torch.empty(0)
            if cache is not None and layer == cache.plan.first_layer:
                lengths = [job.requests.sequences[number].length for number in numbers]
                for number, piece in zip(numbers, hidden.split(lengths), strict=True):
                    cache.write(number, piece)
            hidden, routing = work(batch, hidden.to(self.device))
            self.store.write(index, hidden)
            if routing is not None:
                routings.append(routing.to(torch.float16).cpu().numpy())
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

    def _embedding(self, network: Any) -> Layer:
        use_frozen_modules(network)

        def work(batch: Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self._base(network, batch, input_ids=batch.input_ids), None

        return work

    def _base(self, network: Any, batch: Batch, **source: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = network.base_model(
            **{name: value[None].to(self.device) for name, value in source.items()},
            position_ids=batch.position_ids[None].to(self.device),
            packing=batch.packing.to(self.device),
            use_cache=False,
        ).last_hidden_state[0]
        return values

    def _layer(self, network: Any, layer: int) -> Layer:
        sparse, last = layer in self.job.whole.layout.layers, layer == self.job.whole.depth - 1
        if sparse and last:
            layout = detect(network).shifted(layer)
            routed = RoutedLM(network, layout, (layer,), layer).attach()

            def only_needed(batch: Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                # Without a head what comes out as logits are hidden states, in float32.
                output = routed(**replace(batch, hidden_states=hidden).inputs(self.device))
                return output.logits.to(hidden.dtype), output.routing[:, 0]

            return only_needed

        use_frozen_modules(network)
        seen: list[torch.Tensor] = []
        scoring = self.job.whole.layout.family.scoring
        if sparse:
            router = network.get_submodule(detect(network).sites[0].module)
            router.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))

        def work(batch: Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            hidden = self._base(network, batch, inputs_embeds=hidden)
            if last:
                hidden = hidden[batch.answer_position.to(self.device)]
            return hidden, _routing(batch, seen.pop(), scoring) if sparse else None

        return work

    def _head(self, network: Any) -> list[Record]:
        refuse_not_finite(network, self.job.world.rank)
        use_frozen_modules(network)
        records: list[Record] = []
        experts = self.job.whole.layout.experts
        divisor = self.job.whole.layout.family.logit_divisor(network.config)
        for index, numbers in enumerate(self.job.batches):
            batch = self._batch(index)
            entering = self.store.read(index, self.answers[index]).to(self.device)
            at_answers = replace(batch, position_ids=batch.position_ids[batch.answer_position])
            hidden = self._base(network, at_answers, inputs_embeds=entering)
            logits = logits_of(network, hidden, divisor)
            none = torch.empty(len(numbers), 0, experts)
            records += read_results(self.job.requests, numbers, logits, none)
            self.progress.advance(len(numbers))
        return records


def _routing(batch: Batch, router_logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """float32 [B, E], r over all routed experts, averaged over the chosen prompt tokens."""
    device = router_logits.device
    chosen = routing_weights(router_logits[batch.routing_positions.to(device)], scoring)
    return (chosen * batch.routing_weights.to(device)[..., None]).sum(dim=1)
