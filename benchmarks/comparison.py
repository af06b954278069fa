"""One shape, both sides: run them in turn, turn what ranks measured into numbers, write one JSON a result."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launched import launch, threads_of
from shapes import Questions, Shape, write_project

from roma_ds.pipeline.folders import installed

SHARED_STAGES = ("data", "embed")
Records = list[dict[str, Any]]


@dataclass
class Project:
    """A shape with its data on disk, the stages that both sides share done, and a place for runs."""

    folder: Path
    shape: Shape
    questions: Questions
    ranks: int = 2
    micro_batch: int = 8
    epochs: int = 3
    trained: str = "last5"

    def prepare(self) -> Project:
        """Write files; render and embed the data."""
        for deepspeed in ("zero0", "zero3"):
            write_project(
                self.folder,
                self.shape,
                self.questions,
                deepspeed,
                self.epochs,
                self.micro_batch,
                self.trained,
            )
        launch(
            "prefix_worker.py",
            1,
            ["--config", str(self.config(0)), "--until", "embed", f"output_dir={self.shared}"],
            self.folder / "ranks" / "prepare",
        )
        return self

    def config(self, zero: int) -> Path:
        """The run config for a ZeRO stage."""
        return self.folder / f"zero{zero}.yaml"

    @property
    def shared(self) -> Path:
        """A run folder with the shared stages."""
        return self.folder / "shared"

    def ours(self, zero: int, *arguments: str, until: str = "train", again: bool = False) -> Records:
        """Our job from the collection on; `again` goes on with the last job of this stage."""
        job = self.folder / f"job-zero{zero}"
        if not again:
            shutil.rmtree(job, ignore_errors=True)
            for stage in SHARED_STAGES:
                shutil.copytree(self.shared / stage, job / stage)
        return launch(
            "prefix_worker.py",
            self.ranks,
            ["--config", str(self.config(zero)), "--until", until, *arguments, f"output_dir={job}"],
            self.folder / "ranks" / f"ours-zero{zero}",
        )

    def rival(self, zero: int, *arguments: str) -> Records:
        """The rival's job from its own collection on."""
        return launch(
            "rival_trainer.py",
            self.ranks,
            ["--config", str(self.config(zero)), *arguments, f"output_dir={self.shared}"],
            self.folder / "ranks" / f"rival-zero{zero}",
        )

    def fastest_rival(self, zero: int, steps: int = 8) -> tuple[list[str], dict[str, float]]:
        """The options with which the rival is fastest, and seconds a step of what was tried.

        Below ZeRO-3 two implementations of the experts. Under it only the grouped one, in both ways to decide
        what says `auto`: the eager one calls the activation, a module, once for each expert that is hit, so
        ranks differ in what DeepSpeed sees them run, gather in different orders and abort.
        """
        tried: dict[str, float] = {}

        def best(choices: list[list[str]]) -> list[str]:
            for flags in choices:
                if " ".join(flags) not in tried:
                    tried[" ".join(flags)] = step_seconds(self.rival(zero, *flags, "--steps", str(steps)))
            return min(choices, key=lambda flags: tried[" ".join(flags)])

        grouped = ["--experts", "grouped_mm"]
        other = [*grouped, "--auto"] if zero == 3 else ["--experts", "eager"]
        return best([grouped, other]), tried

    def describe(self) -> dict[str, Any]:
        """What decides the numbers."""
        return {
            "shape": asdict(self.shape),
            "questions": asdict(self.questions),
            "ranks": self.ranks,
            "threads_a_rank": threads_of(self.ranks),
            "micro_batch": self.micro_batch,
            "epochs": self.epochs,
            "trained": self.trained,
        }


def durations(record: dict[str, Any], name: str = "step_ends") -> list[float]:
    """Differences of consecutive values: one a step."""
    values = record[name]
    return [after - before for before, after in itertools.pairwise(values)]


def plain_steps(record: dict[str, Any], warm: int = 2) -> list[int]:
    """Numbers of the steps that count: after warm-up, and none whose log line cost a second backward pass.

    The step after a log line is left out too: writing the line falls into it.
    """
    count = len(record["step_ends"]) - 1
    logged = record.get("logged", [False] * count)
    return [number for number in range(warm, count) if not logged[number] and not logged[number - 1]]


def step_seconds(records: Records) -> float:
    """Median seconds of a step; ranks meet at every step's end, so rank 0 stands for all."""
    taken = durations(records[0])
    return statistics.median(taken[number] for number in plain_steps(records[0]))


def processor_seconds(records: Records) -> float:
    """Median processor seconds of a step, over all ranks: less moved by what else the machine does."""
    steps = plain_steps(records[0])
    taken = [durations(record, "processor") for record in records]
    return statistics.median(sum(values[number] for values in taken) for number in steps)


def epoch_seconds(records: Records) -> float:
    """Mean seconds of an epoch after the first, log lines and all."""
    ends, each = records[0]["step_ends"], records[0]["steps_per_epoch"]
    epochs = (len(ends) - 1) // each
    if epochs < 2:
        raise SystemExit("an epoch's time needs two epochs")
    return float((ends[epochs * each] - ends[each]) / (epochs - 1))


def job_seconds(records: Records) -> float:
    """From process groups that stand to routers on disk."""
    return max(float(record["done"]) for record in records)


def gathered_bytes(records: Records) -> float:
    """Median bytes a step that one rank puts into all-gathers."""
    taken = durations(records[0], "gathered")
    return statistics.median(taken[number] for number in plain_steps(records[0], warm=1))


def peak_bytes(records: Records) -> dict[str, int]:
    """Largest resident memory of a rank above the bare libraries: in training, and from loading on."""
    return {
        "training": max(max(record["peaks"][1:]) for record in records),
        "process": max(max(record["peaks"]) for record in records),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and largest."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "largest": max(values),
        "values": list(values),
    }


def paired(
    repeats: int, ours: Callable[[], Records], rival: Callable[[], Records], measures: dict[str, Any]
) -> dict[str, Any]:
    """Run both in turn `repeats` times; by measure, ours, the rival's, and rival over ours pair by pair."""
    samples: dict[str, dict[str, list[float]]] = {name: {"ours": [], "rival": []} for name in measures}
    for turn in range(repeats):
        for side, run in (("ours", ours), ("rival", rival)):
            records = run()
            for name, measure in measures.items():
                samples[name][side].append(float(measure(records)))
            shown = ", ".join(f"{name} {samples[name][side][-1]:.4g}" for name in measures)
            print(f"  {turn + 1}/{repeats} {side}: {shown}", flush=True)
    return {
        name: {
            **both,
            "ratio": spread([b / a for a, b in zip(both["ours"], both["rival"], strict=True)]),
        }
        for name, both in samples.items()
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory and how busy it is now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg(),
    }


def revision() -> str:
    """The commit that is checked out, with `+` where files differ from it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def write_result(out: Path, name: str, result: dict[str, Any]) -> Path:
    """One JSON of one result, with versions and machine; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    content = {
        "name": name,
        **result,
        "packages": installed(),
        "machine": machine(),
        "revision": revision(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{name}: {path}", flush=True)
    return path


def show(found: dict[str, Any], wanted: Iterable[tuple[str, float]] = ()) -> None:
    """Print ratios, against what they must be at least where that is known."""
    least = dict(wanted)
    for name, values in found.items():
        ratio = values["ratio"]
        against = ""
        if name in least:
            against = f", wanted {least[name]:g}: {'yes' if ratio['median'] >= least[name] else 'NO'}"
        print(
            f"{name}: {ratio['median']:.2f} times ({ratio['least']:.2f} to {ratio['largest']:.2f}){against}",
            flush=True,
        )
