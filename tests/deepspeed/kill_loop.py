"""Kill a random rank at a random moment, run the same command again, compare with the run that nothing hit.

`python tests/deepspeed/kill_loop.py --kills 50 --seed 0 --out kills.json` does it by itself; a test does it
a few times. Each kill aims at a place of the run and a ZeRO stage, each combination in turn, and at a random
moment there. Ranks are forked from a process that has imported everything, so that a kill takes seconds, and
nobody ends the ranks that are left: they must find out. With --launcher they are started as by a user, by
`roma-ds` and the deepspeed launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli.projects import Project, largest_difference, make_project
from kill_runs import LOOKS_EVERY_S, PLACES, RANKS, START, Forked, Launched, place_of

STAGES = (0, 1, 2, 3)
ENDS_WITHIN_S = 60.0
CLOSE = 1e-6
TRIES = 5
"""A run may be over before it is hit; it is started anew then."""
ABORTED = "terminate called"


@dataclass
class Kill:
    """One kill and what followed."""

    zero_stage: int
    aimed_at: str
    struck: str
    """where the run was"""
    rank: int
    after_s: float
    """since the ranks were started"""
    exit_codes: list[int | None]
    ended_within_s: float
    """from the kill until no process of the run was left"""
    rerun_exit_codes: list[int | None]
    rerun_s: float
    resumed_after_step: int | None
    largest_difference: float
    """between the routers of both"""
    same_steps: bool
    """whether both logged the same steps, each once, with the same losses and the same size of S"""
    same_results: bool
    """whether both evaluations found the same"""
    left_behind: list[str]
    """files that the run that nothing hit does not have"""
    aborted_at_exit: bool
    """a process said `terminate called`"""

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing hung."""
        return (
            self.ended_within_s < ENDS_WITHIN_S
            and not any(self.rerun_exit_codes)
            and self.largest_difference <= CLOSE
            and self.same_steps
            and self.same_results
            and not self.aborted_at_exit
        )


@dataclass
class Whole:
    """A run that nothing hit, and how long it was at each place."""

    project: Project
    seconds: dict[str, float]


@dataclass
class Loop:
    """The project, and for each ZeRO stage the run that nothing hit."""

    folder: Path
    start: type[Launched] | type[Forked]

    def __post_init__(self) -> None:
        self.base = make_project(self.folder / "project", rows=64, epochs=2)
        self.wholes: dict[int, Whole] = {}

    def project(self, name: str) -> Project:
        return replace(self.base, out=self.base.folder / name)

    def whole(self, stage: int) -> Whole:
        if stage not in self.wholes:
            project = self.project(f"whole-{stage}")
            run = self.start(project, stage)
            came = {START: run.began}
            while not run.is_over():
                came.setdefault(place_of(run.said()), time.monotonic())
                time.sleep(LOOKS_EVERY_S)
            codes, said = run.end(), run.said()
            if any(codes) or ABORTED in said:
                raise SystemExit(f"the run that nothing hit ended with {codes}:\n{said}")
            ends = [*list(came.values())[1:], time.monotonic()]
            seconds = {place: end - came[place] for place, end in zip(came, ends, strict=True)}
            self.wholes[stage] = Whole(project, seconds)
        return self.wholes[stage]

    def kill(self, name: str, stage: int, place: str, rng: random.Random) -> Kill:
        """Kill a rank of one run at `place`, and run it again."""
        whole = self.whole(stage)
        rank = rng.randrange(RANKS)
        for number in range(TRIES):
            project = self.project(f"{name}-{number}")
            run = self.start(project, stage)
            struck = run.strike(rank, place, rng.uniform(0.0, whole.seconds.get(place, 0.0)))
            killed = time.monotonic()
            codes = run.finish(3 * ENDS_WITHIN_S)
            ended = time.monotonic() - killed
            if any(codes):
                break
        else:
            raise SystemExit(f"{TRIES} runs were over before {place} was hit")
        again = self.start(project, stage)
        rerun_codes = again.finish(10 * ENDS_WITHIN_S)
        told = again.said()
        resumed = re.search(r"resumed after step (\d+) of", told)
        if any(rerun_codes):
            print(f"{name}, killed:\n{run.said()}\nrerun:\n{told}", file=sys.stderr)
        return Kill(
            zero_stage=stage,
            aimed_at=place,
            struck=struck,
            rank=rank,
            after_s=round(killed - run.began, 3),
            exit_codes=codes,
            ended_within_s=round(ended, 2),
            rerun_exit_codes=rerun_codes,
            rerun_s=round(time.monotonic() - again.began, 2),
            resumed_after_step=int(resumed[1]) if resumed else None,
            **compared(project, whole.project, done=not any(rerun_codes)),
            aborted_at_exit=ABORTED in run.said() + told,
        )


def compared(project: Project, whole: Project, done: bool) -> dict[str, Any]:
    """The fields of a `Kill` that say whether two runs came to the same."""
    if not done:
        return {"largest_difference": 1e9, "same_steps": False, "same_results": False, "left_behind": []}
    both = (project, whole)
    steps = [[(line["step"], line["loss"], line["successful"]) for line in run.metrics()] for run in both]
    results = [found_by(run) for run in both]
    return {
        "largest_difference": largest_difference(project.routers(), whole.routers()),
        "same_steps": steps[0] == steps[1],
        "same_results": results[0] == results[1],
        "left_behind": sorted(files(project) - files(whole)),
    }


def found_by(project: Project) -> dict[str, Any]:
    """Results of each evaluation by task."""
    read = {file.stem: json.loads(file.read_text()) for file in (project.out / "eval").glob("*.json")}
    return {name: content["tasks"] for name, content in read.items() if "tasks" in content}


def files(project: Project) -> set[str]:
    """Without event files, whose names hold the time."""
    paths = (path for path in project.out.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {str(path.relative_to(project.out)) for path in paths}


def kill_loop(
    folder: Path,
    kills: int,
    seed: int,
    launcher: bool = False,
    stages: Sequence[int] = STAGES,
    places: Sequence[str] = (START, *PLACES),
    first: int = 0,
) -> Iterator[Kill]:
    """Kill runs number `first` to `kills`, at the `places` and under the ZeRO `stages` in turn."""
    loop = Loop(folder, Launched if launcher else Forked)
    for number in range(first, kills):
        rng = random.Random(f"{seed} {number}")
        turn, place = divmod(number, len(places))
        yield loop.kill(f"killed-{number}", stages[(place + turn) % len(stages)], places[place], rng)


def summary(kills: Sequence[Kill], seed: int, launcher: bool) -> dict[str, Any]:
    """What goes into the JSON."""
    return {
        "what": "kill -9 of a random rank at a random moment of each place and ZeRO stage of whole runs on a "
        "tiny model, then the same command again, against the run that nothing hit",
        "started_by": "roma-ds and the deepspeed launcher" if launcher else "fork, nobody watches the ranks",
        "seed": seed,
        "ranks": RANKS,
        "kills": len(kills),
        "good": sum(kill.good for kill in kills),
        "struck": {place: sum(kill.struck == place for kill in kills) for place in (START, *PLACES)},
        "zero_stages": {stage: sum(kill.zero_stage == stage for kill in kills) for stage in STAGES},
        "longest_until_ended_s": max(kill.ended_within_s for kill in kills),
        "largest_difference": max(kill.largest_difference for kill in kills),
        "aborted_at_exit": sum(kill.aborted_at_exit for kill in kills),
        "each": [asdict(kill) for kill in kills],
    }


def main() -> int:
    """Do it, and write the JSON after every kill; one that is there already is gone on with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", action="store_true", help="start the ranks as a user does")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before = json.loads(options.out.read_text())["each"] if options.out.exists() else []
    found = [Kill(**each) for each in before]
    with tempfile.TemporaryDirectory() as folder:
        given = (options.kills, options.seed, options.launcher)
        for kill in kill_loop(Path(folder), *given, first=len(found)):
            found.append(kill)
            content = summary(found, options.seed, options.launcher)
            options.out.write_text(json.dumps(content, indent=1) + "\n")
            print(json.dumps(content["each"][-1]), flush=True)
    return 0 if all(kill.good for kill in found) else 1


if __name__ == "__main__":
    sys.exit(main())
