"""A checkpoint several times larger than the memory that a process may take: collected, trained, exported.

    python benchmarks/larger_than_memory.py --threads 1 --out results

Makes a checkpoint of random bfloat16 weights of 10 GB where there is none, then runs `roma-ds run` and
`roma-ds merge` with `ulimit -v`, which bounds the address space of every process: its memory cannot exceed
that. Resident memory is sampled from outside on top. Last, the same limit against an engine that holds the
whole network, which must fail. Exits with 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import write_result
from launched import threads_of
from limited import LEAN, Limit
from shapes import (
    Questions,
    Shape,
    add_options,
    from_options,
    write_project,
    write_questions,
)

LARGE = Shape(
    layers=64, hidden=1024, experts=64, expert_width=384, heads=16, key_value_heads=16, vocabulary=8192,
    dtype="bfloat16",
)  # fmt: skip
EVALUATED = 16
"""Rows of the evaluation file."""
OUTPUTS, MERGED, WHOLE = "out", "merged", "out-whole"


def check(arguments: argparse.Namespace) -> bool:
    """Run everything; print and write what was found. True where all is as it should be."""
    shape, questions = from_options(arguments, Shape), from_options(arguments, Questions)
    folder, limit = arguments.work, Limit(int(arguments.limit), arguments.work)
    threads = arguments.threads or threads_of(arguments.ranks)
    begun = time.monotonic()
    config = write_project(
        folder, shape, questions, arguments.deepspeed, arguments.epochs, arguments.micro_batch
    )
    write_questions(
        folder / "eval.jsonl", Questions(samples=EVALUATED, tokens=questions.tokens, seed=questions.seed + 1)
    )
    on_disk = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    making = time.monotonic() - begun
    print(
        f"{on_disk / 1e9:.2f} GB of checkpoint against {limit.size / 1e9:.2f} GB a process: "
        f"{on_disk / limit.size:.2f} times as large",
        flush=True,
    )
    print(f"enforced: {limit.words} (address space of each process, in KiB); no control group", flush=True)
    for old in (OUTPUTS, MERGED, WHOLE):
        shutil.rmtree(folder / old, ignore_errors=True)
    ranks = f"--ranks={arguments.ranks}"
    run = limit.run(
        ["roma-ds", "run", config.name, ranks, f"output_dir={OUTPUTS}", "controls=[router_tuning]"],
        threads,
        "run.log",
    )
    router = f"{OUTPUTS}/export/router.safetensors"
    merge = limit.run(["roma-ds", "merge", "model", router, f"--out={MERGED}"], threads, "merge.log")
    # The same limit must stop what holds the whole network, or it limits nothing.
    control = limit.run(
        ["roma-ds", "collect", config.name, ranks, f"output_dir={WHOLE}", "collect.engine=zero3"],
        threads,
        "whole.log",
    )
    commands = {"run": run, "merge": merge, "whole_network": control}
    shown(commands)
    held = {
        "checkpoint_is_3_times_the_limit": on_disk >= 3 * limit.size,
        "run_and_merge_ended_well": run["exit_code"] == merge["exit_code"] == 0,
        "auto_took_the_stream_engine": any("engine stream" in line for line in run["said"]),
        "whole_network_does_not_fit": control["exit_code"] == 3,
        "exported": (folder / router).exists(),
    }
    for name, value in held.items():
        print(f"{name}: {'yes' if value else 'NO'}", flush=True)
    write_result(
        arguments.out,
        "larger_than_memory" + (f"-ranks{arguments.ranks}" if arguments.ranks > 1 else ""),
        {
            "shape": asdict(shape),
            "questions": {**asdict(questions), "evaluated": EVALUATED},
            "ranks": arguments.ranks,
            "deepspeed": arguments.deepspeed,
            "epochs": arguments.epochs,
            "micro_batch": arguments.micro_batch,
            "checkpoint_bytes": on_disk,
            "limit_bytes": limit.size,
            "limit": f"{limit.words}: address space of each process (RLIMIT_AS); no control group",
            "environment": {**LEAN, "OMP_NUM_THREADS": str(threads)},
            "making_seconds": round(making, 1),
            "commands": commands,
            "results": results(folder / OUTPUTS) if run["exit_code"] == 0 else None,
            "held": held,
        },
    )
    return all(held.values())


def shown(commands: dict[str, dict[str, Any]]) -> None:
    """Print peaks and seconds."""
    for name, found in commands.items():
        print(f"{name}: {found['seconds']:.0f} s, exit code {found['exit_code']}", flush=True)
        for process, peaks in found["peak_resident_bytes_by_stage"].items():
            if process == "other":
                continue
            stages = ", ".join(f"{stage} {value / 1e9:.2f}" for stage, value in peaks.items())
            print(
                f"  {process}: at most {found['peak_resident_bytes'][process] / 1e9:.2f} GB resident, "
                f"{found['peak_address_space_bytes'][process] / 1e9:.2f} GB of addresses ({stages})",
                flush=True,
            )


def results(outputs: Path) -> dict[str, Any]:
    """What the run found, for a reader to see that it did the work."""
    collected = json.loads((outputs / "collect" / "stage.json").read_text())["extra"]
    evaluated = {
        path.stem: json.loads(path.read_text())["average"]
        for path in sorted((outputs / "eval").glob("*.json"))
        if not path.name.endswith(".stage.json")
    }
    return {
        "collected": {name: collected[name] for name in ("samples", "successful", "tokens", "loss")},
        "total_parameters": collected["total_parameters"],
        "accuracy": evaluated,
    }


def main() -> None:
    """Read the options, run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/work/larger"))
    parser.add_argument("--limit", type=float, default=3 * 2**30, help="bytes of address space a process")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, help="a rank; by default cores over ranks")
    parser.add_argument("--deepspeed", default="zero0", help="packaged DeepSpeed JSON")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=4)
    add_options(parser, Shape)
    add_options(parser, Questions)
    parser.set_defaults(**asdict(LARGE), samples=64, tokens=60)
    arguments = parser.parse_args()
    arguments.out, arguments.work = arguments.out.resolve(), arguments.work.resolve()
    sys.exit(0 if check(arguments) else 1)


if __name__ == "__main__":
    main()
