"""A pretended machine with devices, and what deepspeed's own launcher makes there of our line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roma_ds.cli import launcher_flags, launching
from roma_ds.cli.devices import place_ranks
from roma_ds.cli.launcher_flags import read_launcher_flags

VARIABLES = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "rocm": "CUDA_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "hpu": "CUDA_VISIBLE_DEVICES",
    "cpu": "CUDA_VISIBLE_DEVICES",
}
"""As deepspeed's accelerators name them."""
UUID_A, UUID_B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-08ed8e34"


@dataclass
class StandIn:
    """What the launcher and roma_ds ask of an accelerator of a machine with so many devices."""

    kind: str
    devices: int

    def device_name(self) -> str:
        return "cuda" if self.kind == "rocm" else self.kind

    def visible_devices_envs(self) -> list[str]:
        return [VARIABLES[self.kind]]

    def device_count(self) -> int:
        if self.kind == "cpu":
            return int(os.environ.get("LOCAL_SIZE", 1))
        found = self.devices
        names = [VARIABLES[self.kind]] + ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"] * (
            self.kind == "rocm"
        )
        for name in names:
            for place, entry in enumerate(os.environ[name].split(",") if name in os.environ else []):
                if not entry or (entry.strip().isdigit() and int(entry) >= self.devices):
                    found = min(found, place)
                else:
                    found = min(found, len(os.environ[name].split(",")))
        return found

    def set_visible_devices_envs(self, environment: dict[str, str], ids: list[int]) -> None:
        environment[VARIABLES[self.kind]] = ",".join(map(str, ids))

    def export_envs(self) -> list[str]:
        return []


@dataclass(eq=False)
class Started:
    """A process that was not started."""

    line: list[str]
    environment: dict[str, str]
    pid: int = 1
    returncode: int = 0

    def wait(self) -> int:
        return 0

    def poll(self) -> int:
        return 0


@dataclass
class Machine:
    """A pretended machine, and what is typed there."""

    patch: pytest.MonkeyPatch
    started: list[Started] = field(default_factory=list)

    def has(self, kind: str, devices: int = 4, **variables: str) -> None:
        import torch
        from deepspeed.launcher import launch, runner

        stand_in = StandIn(kind, devices)
        for module in ("deepspeed.accelerator", runner, launch):
            if isinstance(module, str):
                self.patch.setattr(f"{module}.get_accelerator", lambda: stand_in)
                continue
            self.patch.setattr(module, "get_accelerator", lambda: stand_in)
            self.patch.setattr(module, "set_log_level_from_string", lambda level: None)
            self.patch.setattr(module, "subprocess", SimpleNamespace(Popen=self._start))
            self.patch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
            self.patch.setattr(
                module, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=2, SIGTERM=15)
            )
        self.patch.setattr(torch.version, "hip", "6.2" if kind == "rocm" else None)
        self.patch.setenv("DS_ACCELERATOR", stand_in.device_name())
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def _start(self, line: list[str], env: dict[str, str], **_: Any) -> Started:
        self.started.append(Started(line, dict(env)))
        return self.started[-1]

    def types(self, flags: str = "", ranks: int | None = None) -> tuple[str, list[dict[str, str]]]:
        """The line of deepspeed's launcher, and every rank's environment as deepspeed leaves it."""
        from deepspeed.launcher import launch, runner

        placed, count = place_ranks(read_launcher_flags(flags.split(), ranks), ranks)
        line = launching.launch_line(count, placed, ["--config", "a.yaml"], port=7)
        environment, file = launching._environment_for(placed)
        assert file is None
        with self.patch.context() as patch:
            patch.setattr(os, "environ", environment)
            runner.main(line[1:])
            patch.setattr(os, "environ", self.started[-1].environment)
            patch.setattr(sys, "argv", self.started.pop().line[3:])
            launch.main()
        ranks_seen = [started.environment for started in self.started]
        self.started.clear()
        return " ".join(line[2:-4]).replace("--master_port=7", "").strip(), ranks_seen


def bare_machine(patch: pytest.MonkeyPatch, folder: Path) -> Machine:
    """Without variables that choose devices, and without a hostfile."""
    patch.setattr(launcher_flags, "DEFAULT_HOSTFILE", folder / "none")
    for name in (*VARIABLES.values(), "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "LOCAL_SIZE"):
        patch.delenv(name, raising=False)
    return Machine(patch)
