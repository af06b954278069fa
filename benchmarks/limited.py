"""Run a command with a bound on its memory, and sample from outside what all of its processes hold."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from roma_ds.cli.launching import launcher_environment

HERE = Path(__file__).resolve().parent
SAMPLED_S = 0.05
LEAN = {
    # Arrow's default allocator reserves 1 GiB of addresses at once, glibc 64 MiB for every thread.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    # Compiled matrix products that torch and oneDNN keep, 1,024 of each by default.
    "LRU_CACHE_CAPACITY": "128",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}
"""Environment under which libraries take no addresses that they do not use."""
STAGE = re.compile(r"(embed|collect|index|train \w+|eval \w+): ")
EVALUATION_DONE = "average accuracy"
KEPT = re.compile(
    r"^(frozen pass|collect|eval \w+|merged|roma-ds: error)\b(?!.*(samples \(|up to date|not run))"
)


@dataclass
class Sampled:
    """Memory of the processes that a command started, by process and stage, in bytes."""

    stage: str = "start"
    resident: dict[str, dict[str, int]] = field(default_factory=dict)
    """Peak by the kernel's count (VmHWM), set back at every new stage."""
    addresses: dict[str, int] = field(default_factory=dict)
    """Peak address space (VmPeak) by process."""
    together: dict[str, int] = field(default_factory=dict)
    """By stage the most that was resident in all processes at one sample, files and shared memory as often
    as there are processes that map them."""
    seconds: dict[str, float] = field(default_factory=dict)

    def watch(self, root: int, ended: threading.Event) -> None:
        """Sample `root` and all that descends from it until `ended` is set."""
        stage, since = self.stage, time.monotonic()
        while not ended.wait(SAMPLED_S):
            now = self.stage
            held = 0
            for process in _family(root):
                held += self._look(process, stage)
                if now != stage:
                    with contextlib.suppress(OSError):
                        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
            self.together[stage] = max(self.together.get(stage, 0), held)
            self._count(stage, since)
            stage, since = now, time.monotonic()

    def _count(self, stage: str, since: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - since

    def _look(self, process: psutil.Process, stage: str) -> int:
        """Note the peaks of a process; returns what is resident now."""
        # It may have ended since it was listed.
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = {name: int(size) * 1024 for name, size in re.findall(r"(Vm\w+):\s+(\d+) kB", status)}
            if "VmHWM" not in found:
                return 0
            name = _name(process)
            peaks = self.resident.setdefault(name, {})
            peaks[stage] = max(peaks.get(stage, 0), found["VmHWM"])
            self.addresses[name] = max(self.addresses.get(name, 0), found["VmPeak"])
            return found["VmRSS"]
        return 0


def _family(root: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    """What a process is: a rank, the command itself, the launcher, or something short-lived."""
    line = process.cmdline()
    if any("deepspeed.launcher" in word or word.endswith("/deepspeed") for word in line):
        return "launcher"
    if "roma_ds.train" in line:
        return f"rank {process.environ().get('RANK', '0')}"
    return "roma-ds" if any(word.endswith("roma-ds") for word in line) else "other"


@dataclass
class Limit:
    """What every process of a command may take."""

    size: int
    """Bytes."""
    folder: Path
    """Where commands run and log."""
    kind: Literal["v", "d"] = "v"
    """Of what `ulimit` bounds: all addresses, or those that are written to and belong to no file."""

    @property
    def words(self) -> str:
        """As a shell command."""
        return f"ulimit -{self.kind} {self.size // 1024}"

    def run(self, words: Sequence[str], threads: int, log: str) -> dict[str, Any]:
        """Run a command under the limit; what it took, and the lines that say what it did."""
        line = shlex.join(words)
        print(f"$ {self.words}; {line}", flush=True)
        environment = {**launcher_environment(), **LEAN, "OMP_NUM_THREADS": str(threads)}
        sampled, ended, said = Sampled(), threading.Event(), []
        started = time.monotonic()
        command = subprocess.Popen(
            ["bash", "-c", f"{self.words} && exec {line}"],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sampler = threading.Thread(target=sampled.watch, args=(command.pid, ended))
        sampler.start()
        assert command.stdout is not None
        with open(self.folder / log, "w") as file:
            for text in command.stdout:
                file.write(text)
                if found := STAGE.match(text):
                    sampled.stage = "export, report" if EVALUATION_DONE in text else found[1]
                if KEPT.match(text):
                    said.append(text.rstrip().replace(f"{self.folder}/", ""))
                    print(f"  {said[-1]}", flush=True)
        code = command.wait()
        seconds = time.monotonic() - started
        ended.set()
        sampler.join()
        return {
            "command": line.replace(f"{HERE}/", "benchmarks/").replace(str(self.folder), "."),
            "exit_code": code,
            "seconds": round(seconds, 1),
            "said": said,
            "peak_resident_bytes": {name: max(peaks.values()) for name, peaks in sampled.resident.items()},
            "peak_resident_bytes_by_stage": sampled.resident,
            "peak_resident_bytes_together": sampled.together,
            "peak_address_space_bytes": sampled.addresses,
            "seconds_by_stage": {name: round(value, 1) for name, value in sampled.seconds.items()},
        }
