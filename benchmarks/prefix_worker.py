"""roma_ds.train with instruments: what the launcher starts on every rank for `prefix_engine.py`.

Runs the stages of the package as they are; times, bytes and memory are read from outside, by wrapping.

    deepspeed --num_accelerators 2 benchmarks/prefix_worker.py --config RUN.yaml --out FOLDER [--until train]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import COMMS_LOGGER, Record, matrix_rate


class Shares:
    """Seconds by part of a step, summed over this rank's training."""

    def __init__(self, record: Record) -> None:
        self.seconds: dict[str, float] = {}
        record.facts["shares"] = self.seconds

    def wrap(self, owner: Any, name: str, part: str, barrier_as: str = "") -> None:
        """Time `owner.name` as `part`; with `barrier_as` ranks meet first, and waiting is timed as that."""
        setattr(owner, name, self.timed(getattr(owner, name), part, barrier_as))

    def timed(self, inner: Callable[..., Any], part: str, barrier_as: str = "") -> Callable[..., Any]:
        """As `wrap`, of a function."""

        def outer(*positional: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            if barrier_as:
                import torch.distributed as dist

                if dist.get_world_size() > 1:
                    dist.barrier()
                begun = self._add(barrier_as, begun)
            found = inner(*positional, **named)
            self._add(part, begun)
            return found

        return outer

    def _add(self, part: str, begun: float) -> float:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - begun
        return now


def time_parts(record: Record) -> None:
    """Time what a step consists of; the barriers cost time of their own, so not for comparisons."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    from roma_ds.prefix.feed import Feed
    from roma_ds.training import loop, step
    from roma_ds.training.engine import RouterEngine
    from roma_ds.training.targets import ManifoldTargets

    shares = Shares(record)
    shares.wrap(Feed, "batch", "batch from the cache")
    shares.wrap(ManifoldTargets, "of", "neighbours")
    shares.wrap(step, "manifold_term", "manifold term forward")
    shares.wrap(RouterEngine, "forward", "forward")
    shares.wrap(RouterEngine, "backward", "backward with gradients' mean and waiting")
    shares.wrap(RouterEngine, "step", "optimizer")
    shares.wrap(loop.Training, "_agree", "agreement", "waiting for the slowest rank")
    shares.wrap(DeepSpeedEngine, "allreduce_gradients", "gradients' mean", "waiting for the slowest rank")
    shares.wrap(loop.Training, "_step", "steps")


def instrument(record: Record, options: argparse.Namespace) -> None:
    """Wrap the package's parts that say when something begins or ends."""
    import roma_ds.comm
    from roma_ds.comm import World
    from roma_ds.pipeline import worker
    from roma_ds.training.loop import Training

    start, resolve = roma_ds.comm.start_world, worker.resolve_deepspeed
    run_loop, step, close = Training.run_loop, Training._step, World.close

    def start_world(*given: Any, **named: Any) -> World:
        world = start(*given, **named)
        record.rank = world.rank
        record.begin()
        return world

    def resolve_deepspeed(*arguments: Any) -> Any:
        extra = {"comms_logger": COMMS_LOGGER} if options.count_bytes else {}
        return {**resolve(*arguments), **extra}

    def measured_loop(self: Training) -> Any:
        facts = record.facts
        facts["lengths"] = self.lengths
        facts["steps_per_epoch"] = self.order.steps_per_epoch
        record.note("engine")
        if options.matrix_rate:
            facts["matrix_rates"] = [matrix_rate(self.run.model.dtype)]
        record.step_done()
        found = run_loop(self)
        record.note("trained")
        if options.matrix_rate:
            facts["matrix_rates"].append(matrix_rate(self.run.model.dtype))
        return found

    def measured_step(self: Training, number: int, logged: bool) -> Any:
        found = step(self, number, logged)
        record.step_done()
        world, micro_batch = self.world, self.run.train.micro_batch
        share = self.order.share(number, world.rank, world.size, micro_batch, self.lengths)
        record.facts.setdefault("rows", []).append([row for rows in share for row in rows])
        record.facts.setdefault("logged", []).append(logged)
        return found

    def measured_close(self: World) -> None:
        import torch

        record.note("done")
        record.facts["threads"] = torch.get_num_threads()
        record.write(options.out)
        close(self)

    roma_ds.comm.start_world = start_world
    worker.resolve_deepspeed = resolve_deepspeed
    patched: list[tuple[type, str, Callable[..., Any]]] = [
        (Training, "run_loop", measured_loop),
        (Training, "_step", measured_step),
        (World, "close", measured_close),
    ]
    for owner, name, function in patched:
        setattr(owner, name, function)


def main() -> None:
    """Instrument, then run as roma_ds.train does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count-bytes", action="store_true", help="switch DeepSpeed's comms logger on")
    parser.add_argument("--matrix-rate", action="store_true", help="time matrix products before and after")
    parser.add_argument("--parts", action="store_true", help="time the parts of a step")
    options, rest = parser.parse_known_args()
    from roma_ds.pipeline import worker

    record = Record(0, count_bytes=options.count_bytes)
    if options.parts:
        time_parts(record)
    instrument(record, options)
    sys.argv[1:] = rest
    worker.main_and_exit()


if __name__ == "__main__":
    main()
