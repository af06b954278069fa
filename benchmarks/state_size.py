"""What a resume state of a large model's routers takes: time and memory to save it and to go on from it.

`python benchmarks/state_size.py --out state.json` makes the routers by shape alone, by default those of every
layer of Qwen3-235B-A22B, and saves and restores them through the code of training, on one rank and on two.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measured import forget_peak, resident_bytes

from roma_ds.comm import World
from roma_ds.testing.local_ranks import on_ranks
from roma_ds.training.checkpoints import Checkpoints
from roma_ds.training.engine import MASTER, MOMENTS

INPUTS = "benchmark"


class HeldRouters:
    """What the engine of a training shows of its routers: weights and moments that are in memory."""

    def __init__(self, layers: int, experts: int, hidden: int, first: bool) -> None:
        source = torch.Generator().manual_seed(0)
        self.layers = list(range(layers))
        self.updates = 1000
        self.is_first = first
        self.names = [f"{name}.{layer}" for name in (MASTER, *MOMENTS) for layer in self.layers]
        self.held = {name: torch.randn(experts, hidden, generator=source) for name in self.names}
        self.trainable_parameters = layers * experts * hidden

    @property
    def bytes(self) -> int:
        """Of all that is held."""
        return 4 * 3 * self.trainable_parameters

    def state_entries(self) -> dict[str, Any]:
        """As RouterEngine."""
        return {name: (np.float32, tuple(self.held[name].shape)) for name in self.names}

    def state_arrays(self) -> Iterator[tuple[str, Any]]:
        """As RouterEngine."""
        for name in self.names:
            # As an engine gathers it: a tensor of its own.
            yield name, self.held[name].clone().numpy() if self.is_first else None

    def restore(self, read: Callable[[str], Any], updates: int) -> None:
        """As RouterEngine."""
        self.updates = updates
        for name in self.names:
            self.held[name].copy_(torch.from_numpy(read(name)))


def measured(world: World, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of `work`, and the most memory that this process had during it above that before."""
    world.barrier()
    forget_peak()
    before, started = resident_bytes(), time.monotonic()
    work()
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 3), "extra_bytes": resident_bytes("VmHWM") - before}


def save_and_load(world: World, shape: tuple[int, int, int], folder: str) -> dict[str, Any]:
    """One rank's share of a save and a restore; shape: layers, experts, hidden."""
    engine: Any = HeldRouters(*shape, first=world.is_first)
    targets: Any = SimpleNamespace(state=dict, restore=lambda index: None)
    run: Any = SimpleNamespace(
        train=SimpleNamespace(keep_states=1, keep_best=False), guards=SimpleNamespace(free_disk=0.0)
    )
    checkpoints = Checkpoints(world, run, engine, targets, Path(folder), INPUTS, print)
    wanted = {name: float(tensor.double().sum()) for name, tensor in engine.held.items()}
    save = measured(world, lambda: checkpoints.save(1000))
    for tensor in engine.held.values():
        tensor.zero_()
    found: list[int] = []
    load = measured(world, lambda: found.append(checkpoints.resume()))
    same = all(float(engine.held[name].double().sum()) == total for name, total in wanted.items())
    if found != [1000] or not same:
        raise SystemExit("what was loaded is not what was saved")
    return {"held_bytes": engine.bytes, "save": save, "load": load}


def main() -> int:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=94)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    shape = (options.layers, options.experts, options.hidden)
    results = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            each = on_ranks(ranks, save_and_load, shape, folder, timeout_s=3600)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        results.append({"ranks": ranks, "bytes_on_disk": size, "by_rank": each})
        print(json.dumps(results[-1]), flush=True)
    content = {
        "what": "a resume state of routers made by shape, with AdamW's moments, saved and restored through "
        "the code of training; extra_bytes: most memory above that before",
        "layers": options.layers, "experts": options.experts, "hidden": options.hidden,
        "bytes_of_one_router": 4 * options.experts * options.hidden,
        "torch": torch.__version__, "cores": os.cpu_count(), "results": results,
    }  # fmt: skip
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
