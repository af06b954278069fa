"""The stream engine on a checkpoint with experts in FP8, against the same in bfloat16: bytes read, seconds.

    python benchmarks/stored_collection.py --out results

Writes a checkpoint of random bfloat16 weights and a copy whose experts are FP8 with a scale for each block,
and takes random prompts through all layers of each, in turns. Each side is a process of its own; bytes are
those that it reads of the checkpoint's files, seconds those of the pass. Exits with 1 where more is read, or
it takes longer, than is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import spread, write_result
from plan_worker import random_prompts
from shapes import Shape, add_options, from_options, write_checkpoint
from stored_experts import store_in_codes

HERE = Path(__file__).resolve()
LENGTH = 128
MOST_READ, LONGEST = 0.55, 1.1
"""Of bytes and of seconds of the bfloat16 side."""
LARGE = Shape(
    layers=6, hidden=2048, experts=32, top_k=4, expert_width=1024, heads=16, key_value_heads=4,
    head_width=128, vocabulary=4096, dtype="bfloat16",
)  # fmt: skip


def count_bytes(folder: Path) -> dict[str, int]:
    """From now on, bytes that are read from files below `folder`, by the one call that reads tensors."""
    from roma_ds.storage import raw_values

    found = {"read": 0}
    inner = os.preadv

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        @staticmethod
        def preadv(file: int, *given: Any) -> int:
            count = inner(file, *given)
            if Path(f"/proc/self/fd/{file}").resolve().is_relative_to(folder):
                found["read"] += count
            return count

    raw_values.os = Counted()  # type: ignore[assignment]
    return found


def measure(model: Path, prompts: int, vocabulary: int, threads: int) -> dict[str, float]:
    """One pass in this process."""
    import torch

    from roma_ds.checkpoint.blueprint import blueprint
    from roma_ds.comm import World
    from roma_ds.comm.ranks import Ranks
    from roma_ds.config import ModelConfig
    from roma_ds.frozen_pass.stream import StreamPass
    from roma_ds.sequences.request_set import requests_of

    torch.set_num_threads(threads)
    config = ModelConfig(path=str(model), dtype="bfloat16")
    requests = requests_of(random_prompts(prompts, LENGTH, vocabulary))
    counted = count_bytes(model.resolve())
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        job = StreamPass(
            world=World(Ranks(), torch.device("cpu")),
            model=config,
            whole=blueprint(config),
            requests=requests,
            batches=requests.batches(8, False),
            tokens="last1",
            shared=False,
            cache=None,
            folder=Path(folder) / "work",
            fingerprint="stored collection",
            activation_bytes=2 << 30,
            title=model.name,
        )
        begun, counted["read"] = time.perf_counter(), 0
        found = job.run()
        seconds = time.perf_counter() - begun
    return {
        "read": counted["read"],
        "seconds": seconds,
        "tokens": sum(requests.lengths),
        "loglikelihood": float(found.loglikelihood.sum()),
    }


def checkpoints(work: Path, shape: Shape) -> dict[str, Path]:
    """Both, by side; written where they are not there."""
    sides = {side: work / side for side in ("bfloat16", "fp8")}
    if not (work / "shape.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        write_checkpoint(sides["bfloat16"], shape)
        shutil.copytree(sides["bfloat16"], sides["fp8"])
        store_in_codes(sides["fp8"], "fp8")
        (work / "shape.json").write_text(json.dumps(asdict(shape)))
    if json.loads((work / "shape.json").read_text()) != asdict(shape):
        raise SystemExit(f"{work} has checkpoints of another shape; delete it or name another --work")
    return sides


def main() -> int:
    """Both sides in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/work/stored_collection"))
    parser.add_argument("--prompts", type=int, default=256, help=f"of {LENGTH} tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    add_options(parser, Shape)
    parser.set_defaults(**asdict(LARGE))
    options = parser.parse_args()
    shape = from_options(options, Shape)
    if options.side:
        print(json.dumps(measure(options.side, options.prompts, shape.vocabulary, options.threads)))
        return 0
    folders = checkpoints(options.work.resolve(), shape)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in folders}
    for pair in range(options.pairs):
        for side in sorted(folders, reverse=pair % 2 == 1):
            call = [sys.executable, str(HERE), *sys.argv[1:], "--side", str(folders[side])]
            done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    pairs_of = list(zip(found["fp8"], found["bfloat16"], strict=True))
    ratios = {key: spread([one[key] / other[key] for one, other in pairs_of]) for key in ("read", "seconds")}
    ends = 2 * shape.vocabulary * shape.hidden * 2 / found["bfloat16"][0]["read"]
    result = {"shape": asdict(shape), "threads": options.threads, "embedding_and_head": ends}
    write_result(options.out, "stored_collection-fp8", {**result, "ratios": ratios, "runs": found})
    read, seconds = ratios["read"]["median"], ratios["seconds"]["median"]
    print(f"fp8: {read:.3f} of the bytes, {seconds:.3f} of the seconds; embedding and head {ends:.3f}")
    return int(read > MOST_READ or seconds > LONGEST)


if __name__ == "__main__":
    sys.exit(main())
