"""What both sides of a comparison measure in the same way: memory, wall clock, bytes gathered."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roma_ds.planner.matrix_rate import matrix_rate

__all__ = ["COMMS_LOGGER", "Record", "forget_peak", "matrix_rate", "read_records", "resident_bytes"]

GATHERS = ("all_gather_into_tensor", "all_gather", "all_gather_coalesced")
"""What DeepSpeed's comms logger may call the collectives that bring weights together."""


def resident_bytes(name: str = "VmRSS") -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def forget_peak() -> None:
    """Let VmHWM start anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def import_libraries() -> None:
    """Everything that either side imports sooner or later, so that it counts as bare libraries for both."""
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401
    import faiss  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "Trainer", "TrainingArguments"):
        getattr(transformers, name)


@dataclass
class Record:
    """What one rank measured; written as JSON by `write`."""

    rank: int
    start: float = 0.0
    """Time at which libraries and process group stood ready."""
    bare_bytes: int = 0
    """Resident at `start`."""
    step_ends: list[float] = field(default_factory=list)
    """After each optimizer step and a barrier; the first is the moment before the first step."""
    processor: list[float] = field(default_factory=list)
    """Processor seconds of this process, noted with each of `step_ends`."""
    resident: list[int] = field(default_factory=list)
    """Resident bytes above the bare libraries, noted with each of `step_ends`."""
    peaks: list[int] = field(default_factory=list)
    """The largest resident bytes since the entry before; the first is that of loading."""
    count_bytes: bool = False
    """Whether DeepSpeed's comms logger is on."""
    gathered: list[int] = field(default_factory=list)
    """All bytes gathered so far, noted with each of `step_ends`."""
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Libraries are imported and the process group stands: what follows counts."""
        import torch.distributed as dist

        import_libraries()
        if dist.get_world_size() > 1:
            dist.barrier()
        forget_peak()
        self.bare_bytes = resident_bytes()
        self.start = time.perf_counter()

    def step_done(self) -> None:
        """Note the end of a step that all ranks have reached."""
        import torch.distributed as dist

        if dist.get_world_size() > 1:
            dist.barrier()
        self.step_ends.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.resident.append(resident_bytes() - self.bare_bytes)
        self.peaks.append(resident_bytes("VmHWM") - self.bare_bytes)
        forget_peak()
        if self.count_bytes:
            found = communicated()
            self.gathered.append(sum(found[name]["bytes"] for name in GATHERS if name in found))

    def note(self, name: str) -> None:
        """Keep the seconds since `start` as fact `name`."""
        self.facts[name] = time.perf_counter() - self.start

    def write(self, folder: Path) -> None:
        """Write rank-N.json."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "rank": self.rank,
            "bare_bytes": self.bare_bytes,
            "step_ends": [moment - self.start for moment in self.step_ends],
            "processor": self.processor,
            "resident": self.resident,
            "peaks": self.peaks,
            "gathered": self.gathered,
            "collectives": communicated() if self.count_bytes else None,
            **self.facts,
        }
        temporary = folder / f"rank-{self.rank}.tmp"
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, folder / f"rank-{self.rank}.json")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """What every rank wrote, in rank order."""
    files = sorted(folder.glob("rank-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    return [json.loads(path.read_text()) for path in files]


def communicated() -> dict[str, dict[str, int]]:
    """By collective, calls and bytes as DeepSpeed's comms logger counted them on this rank.

    Of an all-gather the logger counts what this rank puts in: what it gets is that times the ranks.
    """
    from deepspeed.comm import comm

    found = {}
    for name, sizes in comm.comms_logger.comms_dict.items():
        calls = {int(size): int(values[0]) for size, values in sizes.items()}
        found[name] = {
            "calls": sum(calls.values()),
            "bytes": sum(size * count for size, count in calls.items()),
        }
    return found


COMMS_LOGGER = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}
"""A section of the DeepSpeed JSON."""
