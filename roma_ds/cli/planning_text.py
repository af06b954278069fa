"""A forecast as a person reads it: tables of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from roma_ds.planner.size_text import gibibytes

if TYPE_CHECKING:
    from roma_ds.planner.forecast import Forecast
    from roma_ds.planner.pass_row import PassRow
    from roma_ds.planner.question import Question, Subject
    from roma_ds.planner.training_row import TrainingRow


def lines(subject: Subject, result: Forecast, question: Question) -> Iterator[str]:
    """The whole answer, line by line."""
    total = sum(subject.parameters.values())
    yield f"{subject.name}: {subject.family} ({subject.support})"
    if subject.reason:
        yield f"  {subject.reason}"
    yield ""
    yield from table(
        ("parameters", "", "share"),
        [
            *((kind, f"{number:,}", share(number, total)) for kind, number in subject.parameters.items()),
            ("all", f"{total:,}", ""),
            ("active for a token", f"{subject.active:,}", share(subject.active, total)),
            (
                f"routers of layers {numbers(question.layers)}, trained",
                f"{result.trainable:,}",
                share(result.trainable, total),
            ),
            (
                f"layers {min(question.layers)} to the head, held in training",
                f"{result.suffix:,}",
                share(result.suffix, total),
            ),
        ],
    )
    setting = question.setting
    yield ""
    yield (
        f"Training on {setting.world_size} ranks, {setting.dtype}, {question.micro_batch} samples of "
        f"{question.length} tokens a rank and step; {gibibytes(question.room)} of "
        f"{gibibytes(question.device_memory)} a device are counted on"
    )
    yield ""
    yield from table(TRAINING_HEAD, [training_cells(row) for row in result.training])
    yield ""
    yield f"Frozen pass over {question.tokens:,} tokens, once"
    yield ""
    yield from table(PASS_HEAD, [pass_cells(row) for row in result.passes])
    if question.stored_bytes is not None:
        yield ""
        yield (
            f"checkpoint on disk: {decimal(question.stored_bytes)}B in codes, decoded to {setting.dtype} "
            + (
                "at each use of an expert, all else while it is read"
                if question.in_codes
                else "while they are read"
            )
        )
    yield ""
    more = result.token_bytes != result.hidden_bytes
    token = (
        f", {result.token_bytes:,} bytes a token, {result.hidden_bytes:,} for hidden states alone"
        if more
        else ""
    )
    yield f"prefix cache on disk: {decimal(result.cache_bytes)}B{token}"
    if question.shared:
        yield "  these numbers take no samples to begin alike; tokens that they share are run and stored once"
    yield (
        f"operations: {decimal(result.collection_operations)} in the frozen pass, "
        f"{decimal(result.epoch_operations)} in an epoch, "
        f"{decimal(result.epoch_operations_uncached)} without the prefix cache"
    )
    rates = question.rates
    yield (
        f"times are by arithmetic, at {decimal(rates.matrix)} operations, {decimal(rates.link)}B gathered "
        f"and {decimal(rates.disk)}B of disk a second and rank"
    )
    yield ""
    yield from _recommended(result, question)


TRAINING_HEAD = (
    "ZeRO",
    "prefix cache",
    "weights",
    "gathered",
    "routers",
    "activations",
    "a rank",
    "fits",
    "devices",
    "gathered a step",
    "a step",
    "an epoch",
)
PASS_HEAD = (
    "engine",
    "ZeRO",
    "weights",
    "gathered",
    "working",
    "a rank",
    "fits",
    "devices",
    "gathered",
    "time",
)


def training_cells(row: TrainingRow) -> tuple[str, ...]:
    """A row of the table of training."""
    memory = row.memory
    parts = (memory.weights, memory.gathered, memory.routers, memory.activations, memory.peak)
    return (
        str(row.zero_stage),
        "on" if row.prefix_cache else "off",
        *map(gibibytes, parts),
        "yes" if row.fits else "no",
        devices(row.devices),
        f"{decimal(row.gathered_bytes)}B" if row.gathered_bytes else "0",
        duration(row.step_seconds),
        duration(row.epoch_seconds),
    )


def pass_cells(row: PassRow) -> tuple[str, ...]:
    """A row of the table of engines."""
    memory = row.memory
    return (
        row.engine,
        str(row.zero_stage) if row.engine == "zero3" else "",
        *map(gibibytes, (memory.weights, memory.gathered, memory.activations, memory.peak)),
        "yes" if row.fits else "no",
        devices(row.devices),
        f"{decimal(row.gathered_bytes)}B" if row.gathered_bytes else "0",
        duration(row.seconds),
    )


def _recommended(result: Forecast, question: Question) -> Iterator[str]:
    found = result.recommendation
    cache = "auto" if found.prefix_cache else "off"
    other = found.devices not in (None, question.setting.world_size)
    count = f", on {found.devices} devices" if other else ""
    yield (
        f"take deepspeed: ds_configs/{found.ds_config}.json, train.prefix_cache: {cache}, "
        f"collect.engine: {found.engine}{count}"
    )
    yield from (f"  - {reason}" for reason in found.reasons)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they must be, the first one to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        first, *others = zip(row, widths, strict=True)
        yield "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])


def share(part: int, whole: int) -> str:
    """In percent, with enough digits that little is not nothing."""
    value = 100 * part / whole
    return f"{value:.1f}%" if value >= 1 or not value else f"{value:.4f}%"


def numbers(layers: Sequence[int]) -> str:
    """`11-15` where they follow each other."""
    whole = list(layers) == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    return f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))


def devices(count: int | None) -> str:
    """A dash where no number of devices suffices."""
    return "-" if count is None else str(count)


def decimal(count: float) -> str:
    """1.23e10 -> `12.3 G`."""
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {letter}"
    return f"{count:.0f} "


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
