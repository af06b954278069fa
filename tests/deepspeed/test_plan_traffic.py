"""What the planner says that ZeRO-3 gathers in a step, against DeepSpeed's own count of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def train_each(world: World, folder: str, calls: list[list[str]]) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    from measured import Record
    from plan_worker import build_parser, train

    from roma_ds.pipeline.worker import load_for

    for number, words in enumerate(calls):
        options = build_parser().parse_args([*words, "--out", str(Path(folder) / str(number))])
        run = load_for(options.config, [], str(options.ds))
        train(world, run, options, Record(0, count_bytes=True))


def test_a_step_gathers_what_the_planner_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from measured import read_records
    from plan_check import Point, predicted, prepared, read
    from shapes import Shape

    from roma_ds.planner.zero3_fetches import Zero3Limits

    shape = Shape(
        "olmoe", layers=6, hidden=64, experts=8, top_k=2, expert_width=64, heads=2, key_value_heads=2,
        head_width=32, vocabulary=2000,
    )  # fmt: skip
    # Routers alone are persistent; weights are fetched ahead, and gathered again in the backward pass.
    narrow = Zero3Limits(persistence=1000, prefetch=20_000, reuse=100_000, live=300_000)
    points = [
        Point(shape, 3, 2, cached=True, trained=3, length=12),
        Point(shape, 3, 2, cached=True, trained=3, length=12, limits=narrow),
        Point(shape, 3, 2, cached=False, trained=3, length=12, limits=narrow),
    ]
    calls = [prepared(point, tmp_path / "work", steps=5) for point in points]
    on_ranks(2, train_each, str(tmp_path / "records"), calls, timeout_s=200)
    wanted = [predicted(point)["gathered"] for point in points]
    found = [read(read_records(tmp_path / "records" / str(number)))["gathered"] for number in range(3)]
    assert found == pytest.approx(wanted, rel=0.01)
    assert wanted[0] < wanted[1] < wanted[2]
