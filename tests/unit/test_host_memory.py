"""What a process may still take, under `ulimit` and in control groups of both versions."""

from __future__ import annotations

import resource
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from roma_ds.planner import host_memory
from roma_ds.planner.host_memory import available_bytes

MACHINE = 64_000
Taken = namedtuple("Taken", "vms data")


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(host_memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Machine", "available")(MACHINE))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: Taken(vms=900, data=300))
    limits(monkeypatch)


def limits(monkeypatch: pytest.MonkeyPatch, **found: int) -> None:
    def limit_of(kind: int) -> tuple[int, int]:
        names = {resource.RLIMIT_AS: "addresses", resource.RLIMIT_DATA: "data"}
        return found.get(names[kind], resource.RLIM_INFINITY), resource.RLIM_INFINITY

    monkeypatch.setattr(resource, "getrlimit", limit_of)


def group(folder: Path, version: int, limit: Any, used: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_file, usage_file, prefix = host_memory.FILES[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / usage_file).write_text(f"{used}\n")
    lines = [f"{prefix}{name} {value}" for name, value in stat.items()]
    (folder / "memory.stat").write_text("\n".join(["anon 5", *lines]) + "\n")


def test_ranks_share_a_machine_without_limits() -> None:
    assert available_bytes(1) == MACHINE
    assert available_bytes(2) == MACHINE // 2


def test_limits_of_a_process_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, addresses=3000)
    assert available_bytes(1) == available_bytes(2) == 2100
    limits(monkeypatch, addresses=3000, data=1000)
    assert available_bytes(2) == 700
    limits(monkeypatch, data=100)
    assert available_bytes(1) == 0


@pytest.mark.parametrize(("version", "line", "root"), [(2, "0::", "."), (1, "4:memory:", "memory")])
def test_a_control_group_bounds_all_that_lie_in_it(
    tmp_path: Path, version: int, line: str, root: str
) -> None:
    (tmp_path / "membership").write_text(f"9:cpu,cpuacct:/other\n{line}/outer/inner\n")
    outer = tmp_path / root / "outer"
    group(outer, version, 5000, 1000)
    group(outer / "inner", version, "max" if version == 2 else 2**63 - 4096, 800)
    assert available_bytes(1) == 4000
    assert available_bytes(2) == 2000
    group(outer / "inner", version, 2500, 2400, active_file=700, inactive_file=900)
    assert available_bytes(1) == 100 + 700 + 900


@pytest.mark.parametrize(("version", "line", "root"), [(2, "0::", "."), (1, "4:cpu,memory:", "memory")])
def test_in_a_container_the_root_is_the_own_group(tmp_path: Path, version: int, line: str, root: str) -> None:
    (tmp_path / "membership").write_text(f"{line}/of/the/host\n")
    group(tmp_path / root, version, 3000, 500)
    assert available_bytes(1) == 2500
