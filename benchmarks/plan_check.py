"""`roma-ds plan` against real trainings: memory of a rank, and bytes gathered in a step.

    python benchmarks/plan_check.py --out results

Each point trains a few steps of a checkpoint with random weights twice: at its own size, and at a size near
nothing. What is measured is the difference in resident memory, so that libraries, DeepSpeed's buffers and the
communication's own count on neither side; what is predicted is the difference of two forecasts, by the code
that `roma-ds plan` runs. Bytes are those of DeepSpeed's comms logger.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from comparison import write_result
from flops import shape_sizes
from launched import launch
from plan_worker import random_prompts, write_cache
from shapes import Questions, Shape, checkpoint_bytes, write_project

from roma_ds.config import resolve_deepspeed
from roma_ds.planner.memory import Setting, training_bytes
from roma_ds.planner.model_sizes import ModelSizes
from roma_ds.planner.step_traffic import gathered_bytes
from roma_ds.planner.zero3_fetches import Zero3Limits

FIRST_STEADY = 3
"""DeepSpeed fetches without a plan in the first two passes."""


@dataclass(frozen=True)
class Point:
    """One training to predict and to measure."""

    shape: Shape
    zero: int
    ranks: int
    cached: bool
    trained: int = 4
    """The last so many layers."""
    micro_batch: int = 1
    length: int = 64
    limits: Zero3Limits = field(default_factory=Zero3Limits)

    @property
    def first(self) -> int:
        """The first trained layer."""
        return self.shape.layers - self.trained

    @property
    def name(self) -> str:
        """What it is, in one word."""
        cache = "cached" if self.cached else "whole"
        rules = "" if self.limits == Zero3Limits() else "-narrow"
        start = f"{self.shape.model_type}-{self.shape.dtype}-{self.shape.hidden}"
        return f"{start}-zero{self.zero}-ranks{self.ranks}-{cache}{rules}"

    def emptied(self) -> Point:
        """The same with next to no weights, and one sample of one token."""
        small = replace(
            self.shape, layers=self.trained + 1, hidden=32, experts=8, expert_width=8, heads=1,
            key_value_heads=1, head_width=32, vocabulary=self.shape.vocabulary // 16,
        )  # fmt: skip
        return replace(self, shape=small, micro_batch=1, length=2)


def sizes(point: Point) -> ModelSizes:
    """What training holds, its trained routers marked; from the config alone."""
    whole = shape_sizes(point.shape).training(tuple(range(point.first, point.shape.layers)))
    return whole.suffix(point.first) if point.cached else whole


def predicted(point: Point) -> dict[str, float]:
    """Bytes of a rank at rest and at most, and bytes that it gathers in a step."""
    setting = Setting(
        zero_stage=point.zero,
        world_size=point.ranks,
        dtype=point.shape.dtype,  # type: ignore[arg-type]
        tokens=point.micro_batch * point.length,
        device="cpu",
        limits=point.limits,
    )
    model = sizes(point)
    memory = training_bytes(model, setting)
    gathered = gathered_bytes(model, setting)
    return {"resting": memory.resting, "peak": memory.peak, "gathered": gathered}


def prepared(point: Point, work: Path, steps: int) -> list[str]:
    """The arguments of a rank, once its checkpoint, config and prefix cache are written."""
    folder = work / f"{point.shape.model_type}-{checkpoint_bytes(point.shape)}-{point.shape.dtype}"
    config = write_project(
        folder, point.shape, Questions(samples=8), f"zero{point.zero}", 1, point.micro_batch,
        f"last{point.trained}",
    )  # fmt: skip
    arguments = ["--config", str(config), "--ds", str(_ds_config(config, point, folder))]
    arguments += ["--length", str(point.length), "--vocabulary", str(point.shape.vocabulary)]
    arguments += ["--steps", str(steps), "--count-bytes"]
    if point.cached:
        prompts = random_prompts(point.micro_batch * point.ranks, point.length, point.shape.vocabulary)
        cache = folder / f"prefix-{point.ranks}"
        write_cache(cache, prompts, point.shape.hidden, point.shape.dtype, point.first)
        arguments += ["--cache", str(cache), "--first", str(point.first)]
    return arguments


def measured(point: Point, work: Path, steps: int) -> dict[str, float]:
    """The same by running it: the largest of all ranks; gathered bytes are the median step's."""
    records = launch("plan_worker.py", point.ranks, prepared(point, work, steps), work / "ranks" / point.name)
    return read(records)


def read(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the records of all ranks say."""
    gathered = [
        after - before
        for before, after in zip(records[0]["gathered"], records[0]["gathered"][1:], strict=False)
    ]
    return {
        "resting": max(record["loaded"] for record in records),
        "peak": max(max(record["peaks"][1 + FIRST_STEADY :]) for record in records),
        "gathered": statistics.median(gathered[FIRST_STEADY:]) * len(records),
    }


def _ds_config(config: Path, point: Point, folder: Path) -> Path:
    """The packaged JSON with the limits of the point, where ZeRO-3 has any."""
    from roma_ds.pipeline.worker import load_for

    content = resolve_deepspeed(load_for(config, [], None), point.ranks)
    if point.zero == 3:
        content["zero_optimization"].update(
            stage3_param_persistence_threshold=point.limits.persistence,
            stage3_prefetch_bucket_size=point.limits.prefetch,
            stage3_max_reuse_distance=point.limits.reuse,
            stage3_max_live_parameters=point.limits.live,
        )
    path = folder / f"{point.name}.json"
    path.write_text(json.dumps(content))
    return path


def compare(point: Point, work: Path, steps: int) -> dict[str, Any]:
    """Predicted, measured and their ratio, of the difference to the emptied point."""
    empty = measured(point.emptied(), work, steps)
    return compared(point, measured(point, work, steps), empty)


def compared(point: Point, found: dict[str, float], empty: dict[str, float]) -> dict[str, Any]:
    """The record of a point. found, empty: measured as it is, and without weights."""
    sides = {"predicted": (predicted(point), predicted(point.emptied())), "measured": (found, empty)}
    # Gathered bytes have nothing of libraries in them.
    differences = {
        name: {key: value - (0 if key == "gathered" else base[key]) for key, value in whole.items()}
        for name, (whole, base) in sides.items()
    }
    ratios = {
        key: differences["predicted"][key] / value for key, value in differences["measured"].items() if value
    }
    bases = {f"{name} without weights": base for name, (_, base) in sides.items()}
    return {"name": point.name, **asdict(point), **differences, **bases, "ratio": ratios}


def predicted_again(result: dict[str, Any]) -> dict[str, Any]:
    """A point that was measured before, with what the planner says now."""
    named = {name: result[name] for name in ("zero", "ranks", "cached", "trained", "micro_batch", "length")}
    point = Point(Shape(**result["shape"]), limits=Zero3Limits(**result["limits"]), **named)
    empty = result["measured without weights"]
    whole = {
        key: value + (0 if key == "gathered" else empty[key]) for key, value in result["measured"].items()
    }
    return compared(point, whole, empty)


def points() -> list[Point]:
    """Two families, ZeRO 0, 2 and 3, one rank and two, with and without the prefix cache."""
    olmoe = Shape(
        "olmoe", layers=6, hidden=512, experts=48, top_k=4, expert_width=384, heads=8, key_value_heads=8,
        head_width=64, vocabulary=16000,
    )  # fmt: skip
    qwen = replace(olmoe, model_type="qwen3_moe", experts=96, top_k=8, expert_width=192, key_value_heads=2)
    narrow = Zero3Limits(prefetch=1_000_000, reuse=20_000_000, live=60_000_000)
    return [
        Point(olmoe, 0, 1, cached=True),
        Point(olmoe, 2, 2, cached=False),
        Point(olmoe, 3, 2, cached=True),
        Point(olmoe, 3, 2, cached=False),
        Point(qwen, 0, 2, cached=True),
        Point(qwen, 2, 1, cached=True),
        Point(qwen, 3, 1, cached=False),
        Point(qwen, 3, 2, cached=True),
        Point(qwen, 3, 2, cached=False, limits=narrow),
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Measure the points and write one JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/plan"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="points by name")
    parser.add_argument("--again", type=Path, metavar="JSON", help="only predict anew for these measurements")
    arguments = parser.parse_args(words)
    found = []
    if arguments.again:
        content = json.loads(arguments.again.read_text())
        content["points"] = [predicted_again(result) for result in content["points"]]
        arguments.again.write_text(json.dumps(content, indent=1) + "\n")
        return
    for point in points():
        if arguments.only and point.name not in arguments.only:
            continue
        result = compare(point, arguments.work.resolve(), arguments.steps)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in result["ratio"].items())
        print(f"{point.name}: predicted over measured: {shown}", flush=True)
        found.append(result)
        write_result(arguments.out, "plan", {"points": found})


if __name__ == "__main__":
    main()
