"""A few training steps of the package's engine, measured: what the launcher starts on every rank for
`plan_check.py`.

Loading, engine, feed and step are the package's own; prompts and neighbours are random.

    deepspeed --num_accelerators 2 benchmarks/plan_worker.py --config RUN.yaml --out FOLDER [--cache FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured import COMMS_LOGGER, Record, forget_peak, resident_bytes

FINGERPRINT = "plan check"
"""Of a prefix cache of random hidden states."""
NEIGHBOURS = 3


def random_prompts(count: int, length: int, vocabulary: int, seed: int = 0) -> list[Any]:
    """Prompts of `length` random tokens with four one-token options."""
    import random

    from roma_ds.sequences.encoding import Prompt

    source = random.Random(seed)

    def words(number: int) -> tuple[int, ...]:
        return tuple(source.randrange(3, vocabulary) for _ in range(number))

    prompts = []
    for row in range(count):
        options = tuple((word,) for word in words(4))
        prompts.append(Prompt(row, words(length), options[0], options, 0, False))
    return prompts


def write_cache(folder: Path, prompts: Sequence[Any], hidden: int, dtype: str, first: int) -> None:
    """A finished prefix cache of random values for the sequences of `prompts`."""
    import torch

    from roma_ds.families.entering import Entering
    from roma_ds.prefix.prefix_cache import plan_cache
    from roma_ds.prefix.segments import Segments
    from roma_ds.sequences.request_set import requests_of

    kind = getattr(torch, dtype)
    lengths = requests_of(prompts).lengths
    cache = plan_cache(folder, Segments.alone(lengths), Entering.alone(hidden, dtype), first, FINGERPRINT, 1)
    for number, length in enumerate(lengths):
        cache.write(number, torch.randn(length, hidden).to(kind))
    cache.finish()
    cache.close()


def train(world: Any, run: Any, options: argparse.Namespace, record: Record) -> None:
    """Load, note what rests, and train some steps. A collective."""
    import numpy as np
    import torch

    from roma_ds.config import resolve_deepspeed
    from roma_ds.index import Neighbourhood
    from roma_ds.network.release import return_freed_memory
    from roma_ds.prefix.feed import Feed
    from roma_ds.prefix.prefix_cache import open_cache
    from roma_ds.sequences.request_set import requests_of
    from roma_ds.training.engine import RouterEngine
    from roma_ds.training.step import StepSettings, training_step
    from roma_ds.training.targets import ManifoldTargets

    record.rank = world.rank
    record.begin()
    torch.manual_seed(0)
    extra = {"comms_logger": COMMS_LOGGER} if options.count_bytes else {}
    engine = RouterEngine(world, run, {**resolve_deepspeed(run, world.size), **extra}, options.first)
    return_freed_memory()
    record.facts["loaded"] = resident_bytes() - record.bare_bytes
    record.facts["parameters_held"] = engine.held_parameters
    record.facts["trainable"] = engine.trainable_parameters
    forget_peak()

    share = run.train.micro_batch
    samples = share * world.size
    prompts = random_prompts(samples, options.length, options.vocabulary)
    requests = requests_of(prompts)
    cache = open_cache(options.cache, FINGERPRINT) if options.cache else None
    feed = Feed(requests.sequences, run.roma.tokens, cache)
    columns = range(len(engine.layers))
    routing = np.full((samples, len(columns), engine.layout.experts), 1 / engine.layout.experts, np.float16)
    ids = (np.arange(samples)[:, None] + np.arange(1, NEIGHBOURS + 1)) % samples
    near = Neighbourhood(ids.astype(np.int64), np.full(ids.shape, 0.5, np.float32))
    targets = ManifoldTargets(routing, columns, near, run.roma.sigma)
    mine = [list(range(world.rank * share, (world.rank + 1) * share))]
    settings = StepSettings(run.roma.layer_reduction, task_loss=True)
    record.step_done()
    for step in range(options.steps):
        training_step(
            engine, requests, feed, targets, step + 1, mine, samples, 1.0, run.train.lr, settings,
            with_norms=False,
        )  # fmt: skip
        record.step_done()
    record.write(options.out)
    engine.close()


def build_parser() -> argparse.ArgumentParser:
    """What a rank is told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ds", type=Path, required=True, help="DeepSpeed JSON")
    parser.add_argument("--cache", type=Path, help="prefix cache; without it the whole network is trained")
    parser.add_argument("--first", type=int, help="the layer that cached hidden states enter")
    parser.add_argument("--length", type=int, required=True, help="tokens of a prompt")
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--count-bytes", action="store_true", help="switch DeepSpeed's comms logger on")
    # The launcher adds its own.
    parser.add_argument("--local_rank", type=int)
    return parser


def main() -> None:
    """Run one rank."""
    options = build_parser().parse_args()
    from roma_ds.comm import start_world
    from roma_ds.network.release import keep_large_blocks_apart
    from roma_ds.pipeline.worker import calm_libraries, load_for

    calm_libraries()
    keep_large_blocks_apart()
    run = load_for(options.config, [], str(options.ds))
    world = start_world()
    train(world, run, options, Record(0, count_bytes=options.count_bytes))
    world.close()


if __name__ == "__main__":
    main()
