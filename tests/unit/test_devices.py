"""Which devices ranks get: what deepspeed's own launcher makes of our line, as each rank sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretended_machine import UUID_A, UUID_B, VARIABLES, Machine, bare_machine

from roma_ds.cli import launching
from roma_ds.cli.devices import most_ranks, place_ranks
from roma_ds.cli.launcher_flags import NO_SSH, read_launcher_flags
from roma_ds.comm.visible_devices import adopt_visible_devices
from roma_ds.errors import UserError
from roma_ds.storage import CARRIED_DEVICES


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return bare_machine(monkeypatch, tmp_path)


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
