"""Which of the settings to run, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from roma_ds.planner.engine_advice import advise
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.question import Question
from roma_ds.planner.training_row import TrainingRow


@dataclass(frozen=True)
class Recommendation:
    """What to run."""

    ds_config: str
    """Name of a packaged DeepSpeed JSON."""
    prefix_cache: bool
    engine: Literal["zero3", "stream"]
    devices: int | None
    """Devices that it needs: the given number where that suffices, else the smallest that does."""
    reasons: tuple[str, ...]


def recommend(
    model: ModelSizes,
    trained: ModelSizes,
    question: Question,
    rows: Sequence[TrainingRow],
    operations: float,
) -> Recommendation:
    """The simplest setting that fits on the given number of devices, or the one that needs the fewest.

    trained: the part that training holds; operations: of the frozen pass.
    """
    cached = rows[0].prefix_cache
    plain, partitioned = (
        next(row for row in rows if row.zero_stage == stage and row.prefix_cache == cached)
        for stage in (0, 3)
    )
    whole = next(row for row in rows if not row.prefix_cache)
    gib = 2**30
    given, room = question.setting.world_size, question.room / gib
    moved = partitioned.memory.peak - partitioned.memory.resting
    reasons = []
    if question.uncut is not None:
        reasons.append(f"there is no prefix cache and no engine stream: {question.uncut}")
    elif not cached:
        reasons.append("layer 0 is trained, so there is no prefix to cache")
    else:
        reasons.append(
            f"with the prefix cache {plain.memory.weights / gib:.1f} of "
            f"{whole.memory.weights / gib:.1f} GiB of weights take part in training"
        )
    chosen = plain
    if plain.fits:
        reasons.append(
            f"what is trained fits on every device: {plain.memory.peak / gib:.1f} of {room:.1f} GiB, "
            "and no weights have to be gathered"
        )
    else:
        chosen = partitioned
        reasons.append(f"below ZeRO-3 a rank would hold {plain.memory.peak / gib:.1f} of {room:.1f} GiB")
        if partitioned.fits:
            reasons.append(f"at ZeRO-3 it holds {partitioned.memory.peak / gib:.1f} GiB")
        elif partitioned.devices is None:
            reasons.append("at ZeRO-3 it fits on no number of devices: take larger ones or fewer layers")
        else:
            reasons.append(
                f"at ZeRO-3 {given} would hold {partitioned.memory.peak / gib:.1f} GiB each; "
                f"{partitioned.devices} devices suffice"
            )
    if not chosen.fits and moved <= question.room:
        reasons.append(
            f"zero3_offload_cpu fits on {given}, slower: {moved / gib:.1f} GiB of a device and "
            f"{partitioned.memory.resting / gib:.1f} GiB of host memory a rank"
        )
    advice = advise(
        model, trained, question, operations, chosen.zero_stage, given if chosen.fits else chosen.devices
    )
    return Recommendation(
        f"zero{advice.zero_stage}", cached, advice.engine, advice.devices, (*reasons, *advice.reasons)
    )
