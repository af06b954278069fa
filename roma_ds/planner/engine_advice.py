"""Which engine to take for the frozen pass, by memory and times as the plan shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from roma_ds.planner.frozen_pass import GIB, Engine
from roma_ds.planner.memory import RankBytes, frozen_pass_bytes, stream_bytes, training_bytes
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.pass_row import PassRow, pass_rows
from roma_ds.planner.question import Question, smallest


@dataclass(frozen=True)
class EngineAdvice:
    """An engine, and what the rest of the recommendation has to be for it."""

    engine: Engine
    zero_stage: int
    devices: int | None
    reasons: tuple[str, ...]


def advise(
    model: ModelSizes,
    trained: ModelSizes,
    question: Question,
    operations: float,
    zero_stage: int,
    devices: int | None,
) -> EngineAdvice:
    """The engine that fits, the faster one where both do; where none does, zero3 on as many as it needs.

    trained: the part that training holds; operations: of the pass; zero_stage, devices: what training takes,
    0 or 3, and None where it fits on no number.
    """
    count = devices or question.setting.world_size
    asked = replace(question, setting=replace(question.setting, world_size=count))
    rows = {(row.engine, row.zero_stage): row for row in pass_rows(model, asked, operations)}
    whole, stream = rows["zero3", zero_stage], rows.get(("stream", 0))
    room = f"{question.room / GIB:.1f} GiB"
    spilled = tuple(_spilled(model, asked, stream))
    streams = stream is not None and stream.fits
    if whole.fits or streams:
        engine: Engine = "zero3" if whole.fits else "stream"
        reason = f"{_held(whole)} a rank by zero3 {'fit' if whole.fits else 'do not fit'} in {room}"
        # Where every rank has the whole network, nothing is gathered: reading it layer by layer saves little.
        if stream is not None and whole.fits and stream.fits and whole.gathered_bytes:
            engine = "stream" if stream.seconds < whole.seconds else "zero3"
            reason = f"by stream it takes about {stream.seconds:.0f} s, by zero3 {whole.seconds:.0f} s"
        return EngineAdvice(engine, zero_stage, devices, (f"frozen pass by {engine}: {reason}", *spilled))

    def larger(ranks: int) -> RankBytes:
        setting = replace(question.setting, zero_stage=3, world_size=ranks)
        both = training_bytes(trained, setting), frozen_pass_bytes(model, setting)
        return max(both, key=lambda memory: memory.peak)

    held = f"{_held(whole)} a rank below ZeRO-3" if zero_stage == 0 else f"{_held(whole)} a rank at ZeRO-3"
    held += f", {_held(stream)} by stream" if stream is not None else ""
    problem = f"the frozen pass does not fit in {room} on {count} devices: {held}"
    enough = count if question.fits(larger(count)) else smallest(larger, question)
    if enough is None:
        return EngineAdvice(
            "stream" if spilled else "zero3",
            zero_stage,
            devices,
            (f"{problem}; with training it fits on no number", *spilled),
        )
    reason = f"{problem}; by zero3 at ZeRO-3 it takes {larger(enough).peak / GIB:.1f} GiB on {enough}"
    return EngineAdvice("zero3", 3, enough, (reason, *spilled))


def _spilled(model: ModelSizes, question: Question, stream: PassRow | None) -> Iterator[str]:
    """How the stream engine would fit, where only what it keeps of hidden states stands against it."""
    if stream is None or stream.fits:
        return
    spare = question.room - stream_bytes(model, question.setting, 0).peak
    if spare >= 0:
        limit = int(spare / GIB * 10) / 10
        yield (
            f"stream would fit with collect.activation_memory at {limit} (GiB); "
            "hidden states beyond it go to disk"
        )


def _held(row: PassRow) -> str:
    return f"{row.peak_bytes / GIB:.1f} GiB"
