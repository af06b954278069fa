"""Prints the tables of docs/planning.md: `python docs/planning_tables.py`.

The first four are what `roma-ds plan` says of four published models at its defaults; the last one is read
from docs/evidence/plan/plan.json, which `benchmarks/plan_check.py` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from roma_ds.cli.parser import build_parser
from roma_ds.cli.planning import answer
from roma_ds.cli.planning_text import decimal, devices, duration, numbers
from roma_ds.planner.size_text import gibibytes

MODELS = ("olmoe-1b-7b", "deepseekmoe-16b", "qwen3-30b-a3b", "qwen3-235b-a22b")
MEASURED = Path(__file__).parent / "evidence" / "plan" / "plan.json"
DEVICE = "24GiB"
"""Of the table of smallest numbers of devices, beside the default."""


@cache
def asked(model: str, *options: str) -> tuple[Any, Any, Any]:
    """What `roma-ds plan MODEL` answers: subject, forecast, question."""
    return answer(build_parser().parse_args(["plan", model, *options]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def memory() -> str:
    """Bytes of a rank in training."""
    rows = []
    for model in MODELS:
        _, found, _ = asked(model)
        for row in found.training:
            if row.zero_stage in (0, 3):
                rows.append(
                    (
                        model,
                        str(row.zero_stage),
                        "on" if row.prefix_cache else "off",
                        *map(gibibytes, (row.memory.weights, row.memory.gathered, row.memory.activations)),
                        gibibytes(row.memory.peak),
                        f"{decimal(row.gathered_bytes)}B" if row.gathered_bytes else "0",
                    )
                )
    head = (
        "model",
        "ZeRO",
        "prefix cache",
        "weights",
        "gathered",
        "activations",
        "a rank",
        "gathered a step",
    )
    return table(head, rows)


def passes() -> str:
    """Bytes of a rank in the frozen pass."""
    rows = []
    for model in MODELS:
        _, found, _ = asked(model)
        below, partitioned, stream = found.passes
        peaks = (gibibytes(row.memory.peak) for row in (below, partitioned, stream))
        rows.append(
            (model, *peaks, f"{decimal(stream.read_bytes)}B", f"{decimal(partitioned.gathered_bytes)}B")
        )
    head = (
        "model",
        "`zero3` engine below ZeRO-3",
        "`zero3` at ZeRO-3",
        "`stream`",
        "read by `stream`",
        "gathered at ZeRO-3",
    )
    return table(head, rows)


def work() -> str:
    """Trained parameters, disk, operations and times."""
    rows = []
    for model in MODELS:
        _, found, question = asked(model)
        best = found.recommendation
        chosen = next(
            row
            for row in found.training
            if f"zero{row.zero_stage}" == best.ds_config and row.prefix_cache == best.prefix_cache
        )
        collecting = [row for row in found.passes if row.engine == best.engine]
        collected = next((row for row in collecting if row.fits), collecting[-1])
        rows.append(
            (
                model,
                f"{found.trainable:,} ({numbers(question.layers)})",
                f"{decimal(found.cache_bytes)}B",
                decimal(found.collection_operations),
                decimal(found.epoch_operations),
                decimal(found.epoch_operations_uncached),
                f"{best.ds_config}, {best.engine}",
                duration(collected.seconds),
                duration(chosen.epoch_seconds),
            )
        )
    head = (
        "model",
        "trained (layers)",
        "cache on disk",
        "operations: frozen pass",
        "epoch",
        "epoch without cache",
        "recommended",
        "frozen pass",
        "epoch",
    )
    return table(head, rows)


def fewest() -> str:
    """The smallest number of devices on which training fits."""
    rows = []
    for model in MODELS:
        cells = []
        for size in ("80GiB", DEVICE):
            _, found, _ = asked(model, "--device-memory", size)
            for stage, cached in ((0, True), (3, True), (0, False), (3, False)):
                row = next(r for r in found.training if (r.zero_stage, r.prefix_cache) == (stage, cached))
                cells.append(devices(row.devices))
        rows.append((model, *cells))
    kinds = ("cached, ZeRO 0", "cached, ZeRO-3", "whole, ZeRO 0", "whole, ZeRO-3")
    return table(("model", *(f"{size}: {kind}" for size in ("80 GiB", "24 GiB") for kind in kinds)), rows)


def reality() -> str:
    """Predicted against measured."""
    rows = []
    for point in json.loads(MEASURED.read_text())["points"]:
        shape = point["shape"]
        cells = []
        for key in ("resting", "peak", "gathered"):
            if key in point["ratio"]:
                values = (point["predicted"][key] / 1e6, point["measured"][key] / 1e6)
                cells.append(f"{values[0]:.1f} / {values[1]:.1f} = {point['ratio'][key]:.3f}")
            else:
                cells.append("0 / 0")
        rows.append(
            (
                f"{shape['model_type']}, {shape['dtype']}",
                str(point["zero"]),
                str(point["ranks"]),
                "on" if point["cached"] else "off",
                "narrow" if point["name"].endswith("-narrow") else "as shipped",
                *cells,
            )
        )
    head = (
        "family, dtype",
        "ZeRO",
        "ranks",
        "prefix cache",
        "limits",
        "at rest, MB",
        "at most, MB",
        "gathered a step, MB",
    )
    return table(head, rows)


def tables() -> Iterator[str]:
    """All tables of the page."""
    yield from (memory(), passes(), work(), fewest(), reality())


if __name__ == "__main__":
    for text in tables():
        sys.stdout.write(text + "\n\n")
