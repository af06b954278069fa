"""Which devices ranks get: what deepspeed's own launcher makes of our line, as each rank sees it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roma_ds.cli import launcher_flags, launching
from roma_ds.cli.devices import most_ranks, place_ranks
from roma_ds.cli.launcher_flags import NO_SSH, read_launcher_flags
from roma_ds.comm.visible_devices import adopt_visible_devices
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.storage import CARRIED_DEVICES

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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setattr(launcher_flags, "DEFAULT_HOSTFILE", tmp_path / "none")
    for name in (*VARIABLES.values(), "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return Machine(monkeypatch)


@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu", "npu", "hpu", "cpu"])
@pytest.mark.parametrize(
    ("value", "flags", "ranks", "line", "devices"),
    [
        ("2,3", "", 2, "--include=localhost:2,3", "2,3"),
        ("2,3", "", None, "--include=localhost:2,3", "2,3"),
        ("3, 1,", "", None, "--include=localhost:3,1", "3,1"),
        ("1,2,3", "", 2, "--include=localhost:1,2", "1,2"),
        ("2,3,-1,0", "", None, "--include=localhost:2,3", "2,3"),
        ("2,3", "--num_gpus 2", None, "--include=localhost:2,3", "2,3"),
        ("2,3", "--num_accelerators=1", 1, "--include=localhost:2", "2"),
        ("2,3", "--include localhost:3", None, "--include=localhost:3", "3"),
        ("1,2,3", "-e localhost:2", None, "--include=localhost:1,3", "1,3"),
        (None, "--include localhost:1,3", None, "--include=localhost:1,3", "1,3"),
        (None, "-i localhost:3,1@localhost:0", 3, "--include=localhost:0,1,3", "0,1,3"),
        (None, "--exclude localhost:1", 2, "--include=localhost:0,2", "0,2"),
        (None, "--num_gpus 3 --num_nodes 1", None, "--num_accelerators=3", "0,1,2"),
        (None, "", 2, "--num_accelerators=2", "0,1"),
    ],
)
def test_each_rank_gets_the_chosen_devices(
    kind: str,
    value: str | None,
    flags: str,
    ranks: int | None,
    line: str,
    devices: str,
    machine: Machine,
) -> None:
    name = VARIABLES[kind]
    machine.has(kind, **({} if value is None else {name: value}))
    typed, environments = machine.types(flags, ranks)
    assert typed.startswith(line) and "--num_nodes" not in typed, typed
    assert len(environments) == len(devices.split(","))
    for place, environment in enumerate(environments):
        assert (environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == (str(place), str(len(environments)))
        assert sorted(environment[name].split(",")) == sorted(devices.split(",")), "before roma_ds runs in it"
        adopt_visible_devices(environment)
        assert environment[name] == devices


@pytest.mark.parametrize(
    ("kind", "variables", "count"),
    [
        ("cuda", {"CUDA_VISIBLE_DEVICES": f"{UUID_A},{UUID_B}"}, 2),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-a5c1/1/0"}, 1),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, 2),
        ("xpu", {"ZE_AFFINITY_MASK": "0.0,0.1"}, 2),
        ("rocm", {"HIP_VISIBLE_DEVICES": "2,3"}, 2),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "1,GPU-deadbeef"}, 2),
        ("rocm", {"HIP_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "1,2,3", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ("hpu", {"HABANA_VISIBLE_MODULES": "4,5"}, 2),
        ("cpu", {"CUDA_VISIBLE_DEVICES": ""}, 1),
    ],
)
@pytest.mark.parametrize("typed", [True, False])
def test_ranks_see_what_the_command_saw(
    typed: bool, kind: str, variables: dict[str, str], count: int, machine: Machine
) -> None:
    """Ids, tiles and the variables that deepspeed knows nothing of are not for --include."""
    machine.has(kind, **variables)
    line, environments = machine.types(ranks=count if typed else None)
    assert line == f"--num_accelerators={count}" and len(environments) == count
    names = {VARIABLES[kind], *variables}
    for environment in environments:
        adopt_visible_devices(environment)
        assert {name: environment[name] for name in names if name in environment} == variables


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_no_device_is_a_choice_too(value: str, machine: Machine) -> None:
    machine.has("cpu", CUDA_VISIBLE_DEVICES=value)
    for environment in machine.types(ranks=3)[1]:
        adopt_visible_devices(environment)
        assert environment["CUDA_VISIBLE_DEVICES"] == "" and environment["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(
    ("kind", "variables", "flags", "ranks", "says", "fix"),
    [
        (
            "cuda",
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "",
            3,
            "--ranks 3 contradicts CUDA_VISIBLE_DEVICES=2,3",
            "--ranks 2",
        ),
        (
            "cpu",
            {"CUDA_VISIBLE_DEVICES": "2"},
            "",
            2,
            "CUDA_VISIBLE_DEVICES=2, which chooses 1 device",
            "unset CUDA",
        ),
        (
            "xpu",
            {"ZE_AFFINITY_MASK": "1"},
            "--num_gpus 2",
            None,
            "contradicts ZE_AFFINITY_MASK=1",
            "--ranks 1",
        ),
        ("npu", {"ASCEND_RT_VISIBLE_DEVICES": "1,9"}, "", None, "ASCEND_RT_VISIBLE_DEVICES=1,9 chooses", "0"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "0-3"}, "", None, "=0-3 is no list of devices", "=2,3"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "1,01"}, "", None, "names a device twice", "once"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, "", None, "one MIG instance", "--ranks 1"),
        (
            "cuda",
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "-i localhost:0",
            None,
            "names device 0, but CUDA",
            "unset CUDA",
        ),
        (
            "cuda",
            {"CUDA_VISIBLE_DEVICES": UUID_A},
            "-e localhost:0",
            None,
            "names device 0, but CUDA",
            "leave out",
        ),
        ("rocm", {"HIP_VISIBLE_DEVICES": "2,3"}, "-i localhost:3", None, "both choose devices", "unset HIP"),
        (
            *("rocm", {"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "3"}),
            *("", None, "HIP_VISIBLE_DEVICES=2 and CUDA_VISIBLE_DEVICES=3 contradict", "one of them"),
        ),
        (
            *("rocm", {"ROCR_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "2,3"}),
            *("", None, "ROCR_VISIBLE_DEVICES=2,3 and CUDA_VISIBLE_DEVICES=2,3 contradict", "one of them"),
        ),
        ("cuda", {}, "", 5, "--ranks 5 on 4 devices", "--ranks 4"),
        (
            "cuda",
            {},
            "--include localhost:1,4",
            None,
            "names device 4, but the devices here are 0, 1, 2, 3",
            "both",
        ),
        ("cuda", {}, "--include localhost:1,3", 1, "--ranks 1 contradicts --include localhost:1,3", "name 1"),
        ("cuda", {}, "--exclude localhost", None, "--exclude localhost leaves no device", "some of it"),
        (
            "cuda",
            {},
            "--exclude localhost:1",
            4,
            "contradicts --exclude localhost:1, which leaves 3",
            "--ranks 3",
        ),
        ("cpu", {}, "--include localhost:1-3", None, "localhost:1-3 is not HOST:SLOT,SLOT", "commas"),
        ("cpu", {}, "--include worker:1", None, "--include worker:1 needs a hostfile", "--hostfile"),
        ("cpu", {}, "--exclude worker", None, "--exclude worker needs a hostfile", "--hostfile"),
        ("cpu", {}, "--num_gpus 3", 2, "--num_gpus 3 beside --ranks 2", "--ranks N"),
        ("cpu", {}, "-i localhost:1 -e localhost:0", None, "exclude each other", "one of them"),
    ],
)
def test_contradictions_are_refused_by_name(
    kind: str,
    variables: dict[str, str],
    flags: str,
    ranks: int | None,
    says: str,
    fix: str,
    machine: Machine,
) -> None:
    machine.has(kind, **variables)
    with pytest.raises(UserError) as caught:
        machine.types(flags, ranks)
    assert says in caught.value.message and fix in str(caught.value.fix), caught.value


def test_accelerators_that_cannot_be_had(machine: Machine) -> None:
    machine.has("cuda", 0)
    with pytest.raises(EnvironmentFault, match="no device is visible to deepspeed's cuda"):
        place_ranks(read_launcher_flags([]), 2)

    def absent() -> StandIn:
        raise ValueError("needs torch_npu")

    machine.patch.setattr("deepspeed.accelerator.get_accelerator", absent)
    machine.patch.setenv("DS_ACCELERATOR", "npu")
    with pytest.raises(EnvironmentFault, match="DS_ACCELERATOR=npu: needs torch_npu"):
        place_ranks(read_launcher_flags([]), 2)


def test_the_demo_takes_no_more_ranks_than_there_is_room_for(machine: Machine) -> None:
    machine.has("cpu")
    assert most_ranks(2) == 2
    machine.has("cpu", CUDA_VISIBLE_DEVICES="1")
    assert most_ranks(2) == 1
    machine.patch.delenv("CUDA_VISIBLE_DEVICES")
    machine.has("cuda", 1)
    assert most_ranks(2) == 1
    machine.has("cuda", 8)
    assert most_ranks(2) == 2


def test_a_variable_chooses_on_every_host(machine: Machine, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("a slots=2\nb slots=2\n")
    machine.has("cuda", 0, CUDA_VISIBLE_DEVICES="2,3")
    placed, ranks = place_ranks(read_launcher_flags(["--hostfile", str(hostfile)]), None)
    assert ranks is None and placed.environment == {
        "CUDA_VISIBLE_DEVICES": None,
        CARRIED_DEVICES: "CUDA_VISIBLE_DEVICES=2,3",
    }
    _, file = launching._environment_for(placed)
    assert file is not None and f"{CARRIED_DEVICES}=CUDA_VISIBLE_DEVICES=2,3\n" in file.read_text()
    file.unlink()

    refused: Callable[[str], Any] = lambda more: pytest.raises(UserError, match=more)  # noqa: E731
    with refused("a gets 2 ranks, but CUDA_VISIBLE_DEVICES=2 chooses 1"):
        machine.patch.setenv("CUDA_VISIBLE_DEVICES", "2")
        place_ranks(read_launcher_flags(["--hostfile", str(hostfile)]), None)
    with refused("b:1 and CUDA_VISIBLE_DEVICES=2 both choose"):
        place_ranks(read_launcher_flags(["--hostfile", str(hostfile), "-i", "a:0@b:1"]), None)
    # Each host's own command sees its own devices.
    machine.has("cuda", 4, CUDA_VISIBLE_DEVICES="1,2")
    given = ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", "1"]
    assert place_ranks(read_launcher_flags(given), None)[0].kind == NO_SSH
