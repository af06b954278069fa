"""Devices that cannot be had, and choices of them that contradict each other, by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretended_machine import UUID_A, Machine, StandIn, bare_machine

from roma_ds.cli.devices import place_ranks
from roma_ds.cli.launcher_flags import read_launcher_flags
from roma_ds.errors import EnvironmentFault, UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return bare_machine(monkeypatch, tmp_path)


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
