"""The memory that training takes on a rank, estimated for a run: what `check` and the banner say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from roma_ds.config import RunConfig
from roma_ds.planner.memory import RankBytes, Setting, training_bytes
from roma_ds.planner.model_sizes import sizes_of
from roma_ds.planner.zero3_fetches import Zero3Limits

if TYPE_CHECKING:
    from roma_ds.pipeline.session import Session
    from roma_ds.training.engine import RouterEngine

_LIMITS = {
    "persistence": "stage3_param_persistence_threshold",
    "prefetch": "stage3_prefetch_bucket_size",
    "reuse": "stage3_max_reuse_distance",
    "live": "stage3_max_live_parameters",
}


def setting_of(
    run: RunConfig, ds: Mapping[str, Any], world_size: int, tokens: int, device: Literal["cpu", "cuda"]
) -> Setting:
    """What decides the memory of a rank beside the model.

    ds: resolved; tokens: of a micro-batch.
    """
    zero = ds.get("zero_optimization", {})
    limits = {name: int(zero[key]) for name, key in _LIMITS.items() if isinstance(zero.get(key), int)}
    return Setting(
        zero_stage=int(zero.get("stage", 0)),
        world_size=world_size,
        dtype=run.model.dtype,
        tokens=tokens,
        device=device,
        limits=Zero3Limits(**limits),
    )


def training_estimate(session: Session, engine: RouterEngine) -> RankBytes:
    """Of the training that `engine` is about to do, for a micro-batch of average size. No collective."""
    from roma_ds.checkpoint.span import skeleton
    from roma_ds.checkpoint.stored.kept_experts import kept_in

    run = session.run
    lengths = [
        len(prompt.prompt) + max(1, len(prompt.target)) - 1 for prompt in session.prompts("samples.parquet")
    ]
    samples = run.train.split(session.world.size).micro_batch
    tokens = max(max(lengths), samples * sum(lengths) // len(lengths))
    kept = {name: one.shape[0] * one.bytes for name, one in kept_in(engine.routed.network).items()}
    sizes = sizes_of(skeleton(run.model), session.whole.layout, kept).training(engine.layers)
    if engine.cached:
        sizes = sizes.suffix(engine.routed.first)
    device: Literal["cpu", "cuda"] = "cpu" if session.world.device.type == "cpu" else "cuda"
    return training_bytes(sizes, setting_of(run, session.ds, session.world.size, tokens, device))
