"""The banner's estimate: what the planner says of the part that this run holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from roma_ds.checkpoint.blueprint import blueprint
from roma_ds.checkpoint.span import skeleton
from roma_ds.config import parse_run_config, preset_text, resolve_deepspeed
from roma_ds.families.counting import counted
from roma_ds.pipeline.memory_estimate import training_estimate
from roma_ds.planner.memory import RankBytes
from roma_ds.testing.tiny_models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), layers=6)


def estimate(model: Path, cached: bool, lengths: Sequence[int] = (20, 30), **changes: Any) -> RankBytes:
    given = {"ranks": 1, "deepspeed": "zero0", "micro_batch": 4, **changes}
    overrides = [
        f"model.path={model}",
        "model.dtype=float32",
        "roma.layers=last2",
        f"deepspeed={given['deepspeed']}",
        f"train.micro_batch={given['micro_batch']}",
    ]
    run = parse_run_config(preset_text("olmoe"), model / "run.yaml", overrides)
    ds = resolve_deepspeed(run, given["ranks"])
    ds["zero_optimization"] |= given.get("zero", {})
    session: Any = SimpleNamespace(
        run=run,
        ds=ds,
        world=SimpleNamespace(size=given["ranks"], device=torch.device("cpu")),
        whole=blueprint(run.model),
        prompts=lambda name: [SimpleNamespace(prompt=range(length), target=(1,)) for length in lengths],
    )
    first = 4 if cached else 0
    routed = SimpleNamespace(first=first, network=skeleton(run.model))
    engine: Any = SimpleNamespace(layers=(4, 5), cached=cached, routed=routed)
    return training_estimate(session, engine)


def test_it_counts_the_weights_that_are_held(model: Path) -> None:
    run = parse_run_config(
        preset_text("olmoe"), model / "run.yaml", [f"model.path={model}", "model.dtype=float32"]
    )
    weights = {entry.name: entry.numel for entry in counted(skeleton(run.model))}
    below = ("model.embed_tokens.", *(f"model.layers.{layer}." for layer in range(4)))
    suffix = sum(size for name, size in weights.items() if not name.startswith(below))
    assert estimate(model, cached=False).weights == 4 * sum(weights.values())
    assert estimate(model, cached=True).weights == 4 * suffix


def test_a_rank_of_zero3_holds_its_share_and_gathers(model: Path) -> None:
    whole, shared = (estimate(model, True, deepspeed=f"zero{stage}", ranks=2) for stage in (0, 3))
    assert shared.resting == whole.weights / 2 and whole.gathered == 0
    assert shared.weights == 1.5 * whole.weights, "by default all weights are small enough to stay whole"
    split = estimate(model, True, deepspeed="zero3", ranks=2, zero={"stage3_param_persistence_threshold": 0})
    assert split.weights == whole.weights / 2 and split.gathered > 0


def test_activations_follow_the_tokens_of_a_micro_batch(model: Path) -> None:
    base = estimate(model, True).activations
    assert estimate(model, True, micro_batch=8).activations == 2 * base
    assert estimate(model, True, lengths=(40, 60)).activations == 2 * base
    # One long sequence is a micro-batch of its own, not one of four.
    assert base < estimate(model, True, lengths=(*[25] * 99, 200)).activations < 3 * base
