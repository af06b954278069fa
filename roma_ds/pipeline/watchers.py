"""What watches a training on rank 0: banner and log lines, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from roma_ds.config import to_dict, to_yaml
from roma_ds.data.chat import described
from roma_ds.monitor.console import Banner, log_line
from roma_ds.monitor.hyperparameters import Setting, flat, tell_services, write_settings
from roma_ds.monitor.metrics_log import MetricsLog
from roma_ds.pipeline.memory_estimate import training_estimate
from roma_ds.pipeline.session import Session
from roma_ds.training.callbacks import Callback, LogEntry
from roma_ds.training.engine import RouterEngine
from roma_ds.training.loop import load_entropy
from roma_ds.training.other_states import METRICS

SCALARS = (
    "loss",
    "task_loss",
    "manifold_loss",
    "lambda",
    "grad_norm",
    "grad_norm_task",
    "grad_norm_manifold",
    "lr",
    "accuracy",
    "successful",
    "empty_neighbourhoods",
    "expert_load_entropy",
    "tokens_per_second",
    "memory_bytes",
    "skipped_steps",
)
ACROSS_RANKS = ("straggler_gap", "slowest_rank", "gathered_bytes")
MOST_RANKS = 64
"""Ranks with curves of their own; metrics.jsonl has all of them."""


class ConsoleWatcher:
    """Prints the banner and one line a log step."""

    def __init__(self, banner: Banner) -> None:
        self.banner = banner

    def on_start(self, first_step: int) -> None:
        """Print the facts of the run."""
        print(self.banner.render(), flush=True)

    def on_log(self, entry: LogEntry) -> None:
        """Print the step."""
        print(log_line(entry.metrics, entry.steps), flush=True)


class FileWatcher:
    """Appends to metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.log = MetricsLog(path)

    def on_start(self, first_step: int) -> None:
        """Drop lines of steps that will be done again."""
        self.log.truncate_after(first_step)

    def on_log(self, entry: LogEntry) -> None:
        """Append the step."""
        self.log.append(entry.metrics)


class MonitorWatcher:
    """Sends scalars to the monitors of the DeepSpeed JSON, TensorBoard among them."""

    def __init__(
        self, engine: RouterEngine, settings: Mapping[str, Setting], texts: Mapping[str, str]
    ) -> None:
        """settings, texts: what TensorBoard, W&B and Comet show of the config."""
        self.engine = engine
        self.settings = settings
        self.texts = texts

    def on_start(self, first_step: int) -> None:
        """Send the settings; the engine opened its monitors."""
        monitor = self.engine.engine.monitor
        if getattr(monitor, "tb_monitor", None) is not None:
            board = monitor.tb_monitor
            write_settings(Path(board.output_path) / board.job_name, self.settings, self.texts)
        tell_services(monitor, self.settings)

    def on_log(self, entry: LogEntry) -> None:
        """Send losses, norms, and the expert load of each layer."""
        step = int(entry.metrics["step"])
        events = [
            (f"train/{name}", float(entry.metrics[name]), step)
            for name in SCALARS
            if entry.metrics.get(name) is not None
        ]
        events += [(f"ranks/{name}", float(entry.metrics[name]), step) for name in ACROSS_RANKS]
        for name, values in entry.metrics["ranks"].items():
            events += [(f"ranks/{name}/rank_{rank}", v, step) for rank, v in enumerate(values[:MOST_RANKS])]
        task, manifold = entry.metrics["grad_norm_task"], entry.metrics["grad_norm_manifold"]
        if task and manifold is not None:
            ratio = entry.metrics["lambda"] * manifold / task
            events.append(("train/grad_norm_ratio", ratio, step))
        for layer, load, entropy in zip(entry.layers, entry.load, load_entropy(entry.load), strict=True):
            events.append((f"expert_load_entropy/layer_{layer}", float(entropy), step))
            events.append((f"expert_load_largest/layer_{layer}", float(load.max()), step))
        self.engine.write_events([event for event in events if math.isfinite(event[1])])


def _banner(session: Session, engine: RouterEngine) -> Banner:
    stage = int(session.ds.get("zero_optimization", {}).get("stage", 0))
    whole, first = session.whole, engine.routed.first
    return Banner(
        model=session.run.model.path,
        family=engine.layout.family.name,
        moe_layers=len(whole.layout.sites),
        experts=whole.layout.experts,
        trainable=engine.trainable_parameters,
        total=engine.total_parameters,
        zero_stage=stage,
        world_size=session.world.size,
        dtype=session.run.model.dtype,
        outputs=session.folders.root,
        layers=engine.layers,
        runs=f"layers {first}-{whole.depth - 1} on cached hidden states" if engine.cached else "all layers",
        memory_bytes=training_estimate(session, engine).peak,
        prompts=described(session.tokenizer, session.run.data, session.chat),
    )


def _texts(session: Session, banner: Banner) -> dict[str, str]:
    return {
        "config": to_yaml(session.run),
        "deepspeed": json.dumps(session.ds, indent=2),
        "facts": banner.render(),
    }


def watchers(session: Session, variant: str, engine: RouterEngine) -> Sequence[Callback]:
    """The callbacks of one training; made on every rank, called on rank 0."""
    if not session.world.is_first:
        return ()
    folder, banner = session.folders.training(variant), _banner(session, engine)
    return (
        ConsoleWatcher(banner),
        FileWatcher(folder / METRICS),
        MonitorWatcher(engine, flat({**to_dict(session.run), "variant": variant}), _texts(session, banner)),
    )
