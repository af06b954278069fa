"""Random mutations of what users write: harmful ones must be refused in words, harmless ones accepted.

`python benchmarks/bad_input.py --out results` makes a small project, changes a copy of it for each mutation,
and runs `roma-ds check`, `data`, `plan` or `merge` on it within this process. It ends with 1 where some
mutation ended otherwise than its label says, and names each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mutated_checkpoints
import mutated_configs
import mutated_launches
import mutated_models
import mutated_routers
import mutated_rows
from asked import Ended, ask
from mutated_project import make_base
from mutations import MUTATORS, Case, choose, copied

SLOWEST_S = 60
FILES = (
    mutated_models, mutated_checkpoints, mutated_routers, mutated_configs, mutated_launches, mutated_rows,
)  # fmt: skip
"""They register their mutators as they are imported."""
KINDS = (
    "model config", "safetensors header", "router file", "index file", "run config", "DeepSpeed JSON",
    "hostfile", "rows",
)  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file, by its path in the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Outcome:
    """One mutation and how it ended."""

    number: int
    kind: str
    name: str
    harmful: bool
    command: str
    what: str
    code: int | None
    seconds: float
    fault: str
    """In words; empty where it ended as its label says."""
    said: str


def _fault(harmful: bool, ended: Ended, changed: list[str], new: list[str]) -> str:
    if ended.code is None or "Traceback (most recent call last)" in ended.said:
        return "traceback"
    if ended.seconds > SLOWEST_S:
        return "too slow"
    if changed:
        return f"changed {', '.join(changed[:3])}"
    if not harmful:
        return "" if ended.code == 0 else "wrongly refused"
    if ended.code == 0:
        return "wrongly accepted"
    if ended.code not in (2, 3):
        return f"exit code {ended.code}"
    if new:
        return f"left {', '.join(new[:3])}"
    return "" if "fix: " in ended.said else "no fix is named"


def mutate(base: Path, number: int, seed: int, limit: int | None = None) -> Outcome:
    """Mutation `number` of a seed, always the same: its kind goes round, the rest is drawn."""
    rng = random.Random(f"{seed}/{number}")
    mutator = choose(KINDS[number % len(KINDS)], rng)
    command = rng.choice(mutator.commands)
    # A folder of its own: what is remembered by path shall not hide a change.
    with tempfile.TemporaryDirectory(dir=base.parent, prefix=f"{number}-") as scratch:
        case = Case(copied(base, Path(scratch) / "project"), rng)
        what = mutator.apply(case)
        run, project = str(case.folder / mutated_configs.CONFIG), case.folder
        arguments = {
            "check": [run],
            "data": [
                run,
                *(["--", "--hostfile", str(project / "hostfile")] if mutator.kind == "hostfile" else []),
            ],
            "plan": [*case.arguments, "--layers", "last2"],
            "merge": [
                str(project / "model"),
                str(project / "router.safetensors"),
                "--out",
                str(project / "merged"),
            ],
        }[command]
        before = contents(project)
        ended = ask([command, *arguments], limit)
        after = contents(project)
        ours = ("out/", ".lock") if ended.code == 0 and command == "data" else ()
        changed = [name for name in before if after.get(name) != before[name] and not name.startswith(ours)]
        fault = _fault(mutator.harmful, ended, changed, sorted(after.keys() - before.keys()))
        said = ended.said.replace(str(project), "PROJECT")
    return Outcome(
        number, mutator.kind, mutator.name, mutator.harmful, command, what, ended.code,
        round(ended.seconds, 3), fault, said,
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Counts by kind of file, and of all."""

    def counts(some: Sequence[Outcome]) -> dict[str, Any]:
        return {
            "mutations": len(some),
            "harmful": sum(one.harmful for one in some),
            "harmless": sum(not one.harmful for one in some),
            "refused": sum(one.code in (2, 3) for one in some),
            "wrongly_refused": sum(one.fault == "wrongly refused" for one in some),
            "wrongly_accepted": sum(one.fault == "wrongly accepted" for one in some),
            "tracebacks": sum(one.fault == "traceback" for one in some),
            "other_faults": sum(
                one.fault not in ("", "wrongly refused", "wrongly accepted", "traceback") for one in some
            ),
            "slowest_s": max((one.seconds for one in some), default=0.0),
        }

    found = {kind: counts([one for one in outcomes if one.kind == kind]) for kind in KINDS}
    return {**found, "all": counts(outcomes)}


def fuzz(folder: Path, count: int, seed: int, first: int = 0, limit: int | None = None) -> Iterator[Outcome]:
    """Make the project in `folder`, and yield `count` mutations of it."""
    base = folder / "base"
    base.mkdir(parents=True)
    make_base(base)
    # The first command imports libraries, which is no mutation's time.
    ask(["check", str(base / mutated_configs.CONFIG)], None)
    for number in range(first, first + count):
        yield mutate(base, number, seed, limit)


def _part(count: int, seed: int, first: int, verbose: bool) -> tuple[list[Outcome], float]:
    """Some mutations, each printed where it went wrong, and the processor seconds that they took."""
    outcomes, started = [], time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="bad_input_"))
    try:
        for one in fuzz(folder, count, seed, first, SLOWEST_S):
            outcomes.append(one)
            if one.fault or verbose:
                label, ended = "harmful" if one.harmful else "harmless", one.fault or one.code
                print(f"{one.number} {one.kind}, {one.name} ({label}), {one.command}: {ended}")
                print(f"    {one.what}\n    {one.said.strip()[-1500:]}", flush=True)
            if len(outcomes) % 100 == 0:
                seconds = time.monotonic() - started
                print(f"{len(outcomes)} after {seconds:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    return outcomes, time.process_time()


def main() -> int:
    """Run, print what went wrong, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2400)
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="each with its part of the mutations (1)")
    parser.add_argument(
        "--verbose", action="store_true", help="print every mutation and all that is said of it"
    )
    parser.add_argument("--out", type=Path, help="folder for bad_input.json")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    share = -(-options.mutations // options.processes)
    last = options.first + options.mutations
    starts = range(options.first, last, share)
    parts = [(min(share, last - first), options.seed, first, options.verbose) for first in starts]
    if options.processes == 1:
        done = [_part(*parts[0])]
    else:
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            done = list(pool.map(_part, *zip(*parts, strict=True)))
    outcomes = [one for some, _ in done for one in some]
    found = table(outcomes)
    print(json.dumps(found, indent=1))
    faults = [{**asdict(one), "said": one.said[-500:]} for one in outcomes if one.fault]
    if options.out is not None:
        from comparison import write_result

        write_result(
            options.out,
            "bad_input",
            {
                "seed": options.seed,
                "seconds": round(time.monotonic() - started, 1),
                "processor_seconds": round(sum(spent for _, spent in done), 1),
                "processes": options.processes,
                "mutators": {kind: len({one.name for one in some}) for kind, some in MUTATORS.items()},
                "by_kind": found,
                "faults": faults,
            },
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
