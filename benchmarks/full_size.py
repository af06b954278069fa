"""OLMoE-1B-7B in full size with random weights: collected, trained, exported and merged in 6 GB of memory.

    python benchmarks/full_size.py --threads 1 --out results

Writes a checkpoint of the published config (13.8 GB in bfloat16) shard by shard, then runs `roma-ds export`
with the stream engine, which trains first, and `roma-ds merge`. Memory of all processes is sampled from
outside, by the kernel's own count of the largest resident size; copies of files that it keeps do not count.
`ulimit -d` bounds on top what a process may allocate, touched or not. Last the merged checkpoint is read
against digests of the base that were taken before, and stock transformers is asked which of its keys fit.
Exits with 1 where something is not as it should be. Needs 20 GB of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import write_result
from launched import threads_of
from limited import HERE, LEAN, Limit
from shapes import Questions, Shape

from roma_ds.export.shard import open_shard
from roma_ds.storage.atomic import read_json

BOUND = 6e9
"""Bytes that all processes together may hold."""
RESERVED = 1.2
"""What a process may allocate, in parts of BOUND: stacks and arenas that are reserved are not all touched."""
SAMPLES, PER_STEP, STEPS = 64, 13, 5
"""64 prompts in steps of 13 are 5 steps, the last one of 12."""
OUTPUTS, MERGED = "out", "merged"
INDEX = "model.safetensors.index.json"


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of type, shape and bytes of every tensor of a safetensors file, by key; read piece by piece."""
    found, shard = {}, open_shard(path)
    with open(path, "rb") as file:
        for key, place in shard.places.items():
            total = hashlib.sha256(f"{place.dtype} {list(place.shape)}".encode())
            for piece in shard.pieces(file, key):
                total.update(piece)
            found[key] = total.hexdigest()
    return found


def all_digests(folder: Path, known: dict[Path, dict[str, str]] | None = None) -> dict[str, str]:
    """Those of a whole checkpoint. known: digests of files of which this folder may hold links."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        same = (digested for other, digested in (known or {}).items() if path.samefile(other))
        found |= next(same, None) or digests(path)
    return found


def loads_in_transformers(folder: Path) -> dict[str, Any]:
    """What stock transformers says of a checkpoint that it loads without memory (the meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": "meta"}, dtype=torch.bfloat16, output_loading_info=True
    )
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "problems": wrong,
    }


def merged_against_base(base: Path, merged: Path, before: dict[str, str], router: Path) -> dict[str, Any]:
    """Whether `merged` is `base` but for the tensors of `router`, and its index complete."""
    files = {path: digests(path) for path in sorted(base.glob("*.safetensors"))}
    now = {key: digest for found in files.values() for key, digest in found.items()}
    after, trained = all_digests(merged, files), set(open_shard(router).places)
    placed = read_json(merged / INDEX)["weight_map"]
    shards = sorted(merged.glob("*.safetensors"))
    linked = [path for path in shards if path.samefile(base / path.name)]
    return {
        "tensors": len(after),
        "changed": sorted(key for key in before if after.get(key) != before[key]),
        "trained": sorted(trained),
        "index_is_complete": set(placed) == set(before) == set(after)
        and all(key in open_shard(merged / name).places for key, name in placed.items()),
        "base_is_as_it_was": now == before,
        "shards": len(shards),
        "shards_linked": len(linked),
        "bytes_written": sum(path.stat().st_size for path in shards if path not in linked),
        "in_transformers": loads_in_transformers(merged),
    }


def losses(log: Path) -> Iterator[dict[str, float]]:
    """Of each step what shows that it trained."""
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        yield {name: entry[name] for name in ("step", "loss", "task_loss", "manifold_loss", "grad_norm")}


def full_size(
    work: Path, shape: Shape, threads: int = 1, bound: float = BOUND, engine: str = "auto"
) -> dict[str, Any]:
    """Write, run, merge and compare in `work`, which keeps checkpoints and logs. Returns what was found.

    engine: as `collect.engine`; `auto` streams what is larger than `bound`.
    """
    questions = Questions(samples=SAMPLES, tokens=60)
    work.mkdir(parents=True, exist_ok=True)
    for old in (OUTPUTS, MERGED):
        shutil.rmtree(work / old, ignore_errors=True)
    limit = Limit(int(RESERVED * bound), work, "d")
    print(f"enforced: {limit.words} (what a process allocates, in KiB)", flush=True)
    options = {**asdict(shape), **asdict(questions), "epochs": 1}
    script = ["python", str(HERE / "shapes.py"), str(work)]
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    commands = {"write": limit.run([*script, *given], threads, "write.log")}
    if commands["write"]["exit_code"]:
        return {"commands": commands}
    begun = time.monotonic()
    before = all_digests(work / "model")
    hashing = time.monotonic() - begun
    settings = [
        f"output_dir={OUTPUTS}",
        "controls=[]",
        f"collect.engine={engine}",
        "train.log_every=1",
        "train.micro_batch=1",
        f"train.gradient_accumulation={PER_STEP}",
    ]
    words = ["roma-ds", "export", "zero0.yaml", "--ranks=1", *settings]
    commands["export"] = limit.run(words, threads, "run.log")
    router = work / OUTPUTS / "export" / "router.safetensors"
    if router.exists():
        words = ["roma-ds", "merge", "model", f"{OUTPUTS}/export/router.safetensors", f"--out={MERGED}"]
        commands["merge"] = limit.run(words, threads, "merge.log")
    found: dict[str, Any] = {
        "questions": asdict(questions),
        "engine": engine,
        "checkpoint_bytes": sum(path.stat().st_size for path in (work / "model").glob("*.safetensors")),
        "bound_bytes": int(bound),
        "bound": f"largest resident memory, all processes together; enforced: {limit.words} (RLIMIT_DATA)",
        "environment": {**LEAN, "OMP_NUM_THREADS": str(threads)},
        "commands": commands,
        "hashing_seconds": round(hashing, 1),
    }
    if (work / MERGED).exists():
        outputs = work / OUTPUTS
        found["training"] = list(losses(outputs / "train" / "metrics.jsonl"))
        found["cache_bytes"] = sum(p.stat().st_size for p in (outputs / "collect" / "prefix").rglob("*.*"))
        found["merged"] = merged_against_base(work / "model", work / MERGED, before, router)
    return found


def held(found: dict[str, Any]) -> dict[str, bool]:
    """What has to be so, by name."""
    commands, merged = found["commands"], found.get("merged", {})
    steps = [entry["grad_norm"] for entry in found.get("training", [])]
    told = merged.get("in_transformers", {})
    return {
        "all_commands_ended_well": len(commands) == 3 and not any(c["exit_code"] for c in commands.values()),
        "all_processes_below_the_bound": all(
            max(command["peak_resident_bytes_together"].values(), default=0) < found["bound_bytes"]
            and sum(command["peak_resident_bytes"].values()) < found["bound_bytes"]
            for command in commands.values()
        ),
        "streamed": found["engine"] == "stream"
        or any("engine stream" in line for line in commands.get("export", {}).get("said", [])),
        "trained_every_step": len(steps) == STEPS and all(norm > 0 for norm in steps),
        "index_complete": merged.get("index_is_complete", False),
        "only_trained_gates_changed": bool(merged) and merged["changed"] == merged["trained"],
        "base_untouched": merged.get("base_is_as_it_was", False),
        "transformers_takes_it": bool(told) and not told["problems"],
    }


def write_found(found: dict[str, Any], shape: Shape, out: Path) -> bool:
    """Print and write what was found; True where all is as it should be."""
    for name, command in found["commands"].items():
        print(f"{name}: {command['seconds']:.0f} s, exit code {command['exit_code']}", flush=True)
        for stage, size in command["peak_resident_bytes_together"].items():
            print(f"  {stage}: {size / 1e9:.2f} GB resident, all processes", flush=True)
    checks = held(found)
    for name, value in checks.items():
        print(f"{re.sub('_', ' ', name)}: {'yes' if value else 'NO'}", flush=True)
    write_result(out, "full_size", {"shape": asdict(shape), **found, "held": checks})
    return all(checks.values())


def main() -> None:
    """Read the options, run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="olmoe-1b-7b", help="a published model that roma_ds knows")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/work/full-size"))
    parser.add_argument("--bound", type=float, default=BOUND, help="bytes of memory")
    parser.add_argument("--threads", type=int, help="by default all cores")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    arguments = parser.parse_args()
    shape, work = Shape.of_published(arguments.model), arguments.work.resolve()
    found = full_size(work, shape, arguments.threads or threads_of(1), arguments.bound)
    good = write_found(found, shape, arguments.out)
    if not arguments.keep:
        shutil.rmtree(work)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
