"""Training in each setting: memory, traffic, time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from roma_ds.planner.memory import RankBytes, training_bytes
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.question import Question, smallest
from roma_ds.planner.step_traffic import gathered_bytes


@dataclass(frozen=True)
class TrainingRow:
    """Training in one setting."""

    zero_stage: int
    prefix_cache: bool
    memory: RankBytes
    peak_bytes: int
    """All of that."""
    fits: bool
    devices: int | None
    """The smallest number of devices on which it fits; None where no number does."""
    gathered_bytes: int
    """That a rank brings together in an optimizer step of one micro-batch."""
    step_seconds: float
    epoch_seconds: float


def training_row(
    sizes: ModelSizes, question: Question, stage: int, cached: bool, operations: float
) -> TrainingRow:
    """One setting. sizes: of what training holds, its trained routers marked; operations: of an epoch."""
    setting = replace(question.setting, zero_stage=stage)
    rates = question.rates
    memory = training_bytes(sizes, setting)
    gathered = gathered_bytes(sizes, setting)
    hidden = sizes.entering_bytes(sizes.first, setting.itemsize) if cached else 0
    step = operations / question.samples * question.micro_batch / rates.matrix
    step += gathered / rates.link + setting.tokens * hidden / rates.disk
    return TrainingRow(
        zero_stage=stage,
        prefix_cache=cached,
        memory=memory,
        peak_bytes=memory.peak,
        fits=question.fits(memory),
        devices=smallest(lambda ranks: training_bytes(sizes, replace(setting, world_size=ranks)), question),
        gathered_bytes=gathered,
        step_seconds=step,
        epoch_seconds=question.steps * step,
    )
