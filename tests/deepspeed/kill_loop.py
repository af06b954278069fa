"""Kill a random rank at a random moment, run the same command again, compare with the run that nothing hit.

`python tests/deepspeed/kill_loop.py --kills 50 --seed 0 --out kills.json` does it by itself.
Ranks are forked from a process that has imported everything, so that a kill takes seconds, and
nobody ends the ranks that are left: they must find out. With --launcher they are started as by a user, by
`roma-ds` and the deepspeed launcher.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli.projects import BIN, Finished, Project, Started, largest_difference, make_project

RANKS = 2
STAGES = (0, 1, 2, 3)
SETTINGS = (
    "train.save_every=2",
    "train.log_every=1",
    "collect.save_every=0.1",
    "roma.lambda=0.5",
    # A rank that is killed before all have met is waited for this long.
    "guards.collective_timeout=30",
)
ENDS_WITHIN_S = 60.0
CLOSE = 1e-6
ABORTED = "terminate called"
IMPORTED = ("torch", "deepspeed", "transformers", "sentence_transformers", "faiss", "roma_ds.pipeline.stages")


@dataclass
class Kill:
    """One kill and what followed."""

    zero_stage: int
    rank: int
    after_s: float
    """since the ranks were started"""
    struck: str
    """the stage that had begun last, or that the run was over"""
    exit_codes: list[int | None]
    ended_within_s: float
    """from the kill until no process of the run was left"""
    rerun_exit_codes: list[int | None]
    rerun_s: float
    resumed_after_step: int | None
    largest_difference: float
    each_step_logged_once: bool
    aborted_at_exit: bool
    """a process said `terminate called`"""

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing hung."""
        return (
            self.ended_within_s < ENDS_WITHIN_S
            and not any(self.rerun_exit_codes)
            and self.largest_difference <= CLOSE
            and self.each_step_logged_once
            and not self.aborted_at_exit
        )


class Run(Protocol):
    """A run in the background."""

    def pids(self) -> list[int]:
        """Of the ranks, once all are there."""

    def finish(self, timeout_s: float) -> tuple[list[int | None], str]:
        """Wait for the end; exit codes and everything that was said. After `timeout_s` all is killed."""


def command(project: Project, stage: int) -> list[str]:
    return project.arguments("eval", f"deepspeed=zero{stage}", *SETTINGS, ranks=RANKS)


class Launched:
    """`roma-ds eval --ranks N`."""

    def __init__(self, project: Project, stage: int) -> None:
        self.started = Started([str(BIN / "roma-ds"), *command(project, stage)], project.folder)

    def pids(self) -> list[int]:
        while len(found := self.started.ranks()) < RANKS and self.started.process.poll() is None:
            time.sleep(0.02)
        return [process.pid for process in found]

    def finish(self, timeout_s: float) -> tuple[list[int | None], str]:
        done: Finished = self.started.finish(timeout_s)
        return [done.code], done.out + done.err


def be_rank(rank: int, port: int, arguments: Sequence[str], log: str) -> None:
    """What the launcher would start as a process of its own."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    from roma_ds.pipeline.worker import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Forked:
    """The ranks alone, with nobody to watch them."""

    def __init__(self, project: Project, stage: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        typed = command(project, stage)
        words = ["--config", typed[1], "--until", "eval", *typed[4:]]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._log = project.folder / f"{project.out.name}.log"
        self._log.unlink(missing_ok=True)
        self._ranks = [
            context.Process(target=be_rank, args=(rank, self._port, words, str(self._log)))
            for rank in range(RANKS)
        ]
        for process in self._ranks:
            process.start()

    def pids(self) -> list[int]:
        return [process.pid for process in self._ranks if process.is_alive() and process.pid is not None]

    def finish(self, timeout_s: float) -> tuple[list[int | None], str]:
        deadline = time.monotonic() + timeout_s
        for process in self._ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self._ranks]
        for process in self._ranks:
            process.kill()
            process.join()
        # A rank that is killed before all have met leaves its buffer of DeepSpeed's there.
        for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{self._port}_*"):
            buffer.unlink()
        return codes, self._log.read_text(errors="replace")


@dataclass
class Loop:
    """The project, and for each ZeRO stage the run that nothing hit."""

    folder: Path
    start: type[Launched] | type[Forked]

    def __post_init__(self) -> None:
        self.base = make_project(self.folder / "project", rows=64, epochs=2)
        # The launcher's parent does this.
        made = self.base.run("data", ranks=1)
        assert made.code == 0, made
        self.wholes: dict[int, tuple[Project, float]] = {}

    def whole(self, stage: int) -> tuple[Project, float]:
        """The run and how long it took."""
        if stage not in self.wholes:
            project = self.base.copied(self.base.folder / f"whole-{stage}")
            run, began = self.start(project, stage), time.monotonic()
            run.pids()
            codes, said = run.finish(600)
            if any(codes) or ABORTED in said:
                raise SystemExit(f"the run that nothing hit ended with {codes}:\n{said}")
            self.wholes[stage] = project, time.monotonic() - began
        return self.wholes[stage]

    def kill(self, number: int, stage: int, rng: random.Random) -> Kill:
        """Kill a rank of one run, and run it again."""
        whole, seconds = self.whole(stage)
        project = replace(self.base, out=self.base.folder / f"killed-{number}")
        self.base.copied(project.out)
        rank, after = rng.randrange(RANKS), rng.uniform(0.0, seconds)
        run, began = self.start(project, stage), time.monotonic()
        pids = run.pids()
        time.sleep(max(0.0, began + after - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(pids[rank], 9)
        killed = time.monotonic()
        codes, said = run.finish(3 * ENDS_WITHIN_S)
        ended = time.monotonic() - killed
        again, begun = self.start(project, stage), time.monotonic()
        again.pids()
        rerun_codes, told = again.finish(10 * ENDS_WITHIN_S)
        resumed = re.search(r"resumed after step (\d+) of", told)
        steps = [line["step"] for line in project.metrics()]
        done = not any(rerun_codes)
        return Kill(
            zero_stage=stage,
            rank=rank,
            after_s=round(after, 3),
            struck=place_of(said) if any(codes) else "over",
            exit_codes=codes,
            ended_within_s=round(ended, 2),
            rerun_exit_codes=rerun_codes,
            rerun_s=round(time.monotonic() - begun, 2),
            resumed_after_step=int(resumed[1]) if resumed else None,
            largest_difference=largest_difference(project.routers(), whole.routers()) if done else 1e9,
            each_step_logged_once=steps == [line["step"] for line in whole.metrics()],
            aborted_at_exit=ABORTED in said + told,
        )


def place_of(said: str) -> str:
    """The stage that a run had begun last, and in training the step that it had logged."""
    found = re.findall(r"^(embed|collect|index|train \w+|eval \w+)(?=:)", said, re.MULTILINE)
    steps = re.findall(r"^step +(\d+)/", said, re.MULTILINE)
    if not found:
        return "start"
    return f"{found[-1]}, step {steps[-1]}" if found[-1].startswith("train") and steps else str(found[-1])


def kill_loop(folder: Path, kills: int, seed: int, launcher: bool, stages: Sequence[int]) -> list[Kill]:
    """Kill `kills` runs, one after the other, under the ZeRO `stages` in turn."""
    loop = Loop(folder, Launched if launcher else Forked)
    rng = random.Random(seed)
    found = []
    for number in range(kills):
        found.append(loop.kill(number, stages[number % len(stages)], rng))
        print(json.dumps(asdict(found[-1])), flush=True)
    return found


def summary(kills: list[Kill], seed: int, launcher: bool) -> dict[str, Any]:
    """What goes into the JSON."""
    places: dict[str, int] = {}
    for kill in kills:
        place = kill.struck.split(",")[0]
        places[place] = places.get(place, 0) + 1
    return {
        "what": "kill -9 of a random rank at a random moment of all stages on a tiny model, then the same "
        "command again, against the run that nothing hit",
        "started_by": "roma-ds and the deepspeed launcher" if launcher else "fork, nobody watches the ranks",
        "seed": seed,
        "ranks": RANKS,
        "kills": len(kills),
        "good": sum(kill.good for kill in kills),
        "struck": places,
        "longest_until_ended_s": max(kill.ended_within_s for kill in kills),
        "largest_difference": max(kill.largest_difference for kill in kills),
        "aborted_at_exit": sum(kill.aborted_at_exit for kill in kills),
        "each": [asdict(kill) for kill in kills],
    }


def main() -> int:
    """Do it, and write the JSON after every kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", action="store_true", help="start the ranks as a user does")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    rng, found = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder), Launched if options.launcher else Forked)
        for number in range(options.kills):
            found.append(loop.kill(number, STAGES[number % len(STAGES)], rng))
            content = summary(found, options.seed, options.launcher)
            options.out.write_text(json.dumps(content, indent=1) + "\n")
            print(json.dumps(content["each"][-1]), flush=True)
    return 0 if all(kill.good for kill in found) else 1


if __name__ == "__main__":
    sys.exit(main())
