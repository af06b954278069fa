"""The frozen pass by each engine: memory, traffic, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from roma_ds.planner.memory import RankBytes, Setting, frozen_pass_bytes, stream_bytes
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.question import Question, smallest
from roma_ds.planner.zero3_fetches import fetches


@dataclass(frozen=True)
class PassRow:
    """The frozen pass by one engine."""

    engine: Literal["zero3", "stream"]
    zero_stage: int
    memory: RankBytes
    peak_bytes: int
    """All of that."""
    fits: bool
    devices: int | None
    gathered_bytes: int
    """That a rank brings together in the whole pass."""
    read_bytes: int
    """That a rank reads of the checkpoint."""
    seconds: float


def pass_rows(model: ModelSizes, question: Question, operations: float) -> Iterator[PassRow]:
    """Both engines, the one that DeepSpeed runs below ZeRO-3 and at it. operations: of the whole pass."""
    rates, world = question.rates, question.setting.world_size
    whole = question.stored_bytes or model.total * question.setting.itemsize
    computing = operations / world / rates.matrix
    for stage in (0, 3):
        setting = replace(question.setting, zero_stage=stage)
        memory = frozen_pass_bytes(model, setting)
        gathered, read = 0, whole
        if stage == 3:
            # A rank reads its own shares.
            read = -(-whole // world)
            found = fetches(model, setting.limits, world, backward=False)
            gathered = (question.steps * found.gathered + found.persistent) * setting.itemsize
        yield PassRow(
            engine="zero3",
            zero_stage=stage,
            memory=memory,
            peak_bytes=memory.peak,
            fits=question.fits(memory),
            devices=_smallest(model, setting, question),
            gathered_bytes=gathered,
            read_bytes=read,
            seconds=read / rates.disk + computing + gathered / rates.link,
        )
    if question.uncut is not None:
        return
    memory = stream_bytes(model, question.setting, min(question.activation_memory, _states(model, question)))
    fits = question.fits(memory)
    # The next layer is read while this one computes.
    seconds = max(computing, whole / rates.disk)
    yield PassRow("stream", 0, memory, memory.peak, fits, 1 if fits else None, 0, whole, seconds)


def _smallest(model: ModelSizes, setting: Setting, question: Question) -> int | None:
    return smallest(lambda ranks: frozen_pass_bytes(model, replace(setting, world_size=ranks)), question)


def _states(model: ModelSizes, question: Question) -> int:
    """Bytes of the hidden states of one rank's tokens."""
    return -(-question.tokens // question.setting.world_size) * max(
        model.entering_bytes(layer, question.setting.itemsize) for layer in range(model.layers)
    )
