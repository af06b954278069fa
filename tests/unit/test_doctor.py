from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from roma_ds.cli import doctor
from roma_ds.cli.doctor import Check

ROOT = Path(__file__).resolve().parents[2]


def names(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_every_check_that_is_not_green_has_a_fix() -> None:
    checks = list(doctor.all_checks())
    assert {"python", "torch", "faiss", "accelerator", "compiler", "launcher", "mpi", "memory", "disk"} <= {
        check.name for check in checks
    }
    assert all(check.fix for check in checks if check.state != "green")


def test_one_red_check_gives_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    green, amber = Check("a", "green", "fine"), Check("b", "amber", "so so", "mend it")
    monkeypatch.setattr(doctor, "all_checks", lambda: iter([green, amber]))
    assert doctor.run_doctor() == 0
    text = capsys.readouterr().out
    assert "green  a: fine" in text and "amber  b: so so\n       fix: mend it" in text
    monkeypatch.setattr(doctor, "all_checks", lambda: iter([green, Check("c", "red", "gone", "buy one")]))
    assert doctor.run_doctor(json=True) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == 3
    assert report["checks"][1] == {"name": "c", "state": "red", "found": "gone", "fix": "buy one"}


def test_two_faiss_wheels_are_red_and_the_fix_leaves_one() -> None:
    both = doctor.check_faiss({"faiss-cpu": "1.15.1", "faiss-gpu-cu12": "1.14.1"}, has_gpu=True)
    assert both.state == "red"
    assert both.fix.startswith("pip uninstall -y faiss-cpu faiss-gpu-cu12 && ")
    assert both.fix.endswith(" faiss-gpu-cu12")
    assert doctor.check_faiss({}, has_gpu=False).state == "red"
    assert doctor.check_faiss({"faiss-gpu-cu12": "1.14.1"}, has_gpu=False).state == "amber"
    assert doctor.check_faiss({"faiss-cpu": "1.15.1"}, has_gpu=True).state == "green"


@pytest.mark.parametrize(
    ("devices", "cuda", "forced", "state"),
    [
        ([], None, None, "green"),
        ([], None, "cpu", "green"),
        ([], None, "cuda", "red"),
        (["H100"], None, None, "amber"),
        (["H100"], "12.8", None, "green"),
        (["H100"], "12.8", "cpu", "amber"),
        (["H100"], None, "cuda", "red"),
    ],
)
def test_accelerator(devices: list[str], cuda: str | None, forced: str | None, state: str) -> None:
    assert doctor.check_accelerator(devices, cuda, forced).state == state


def test_missing_compiler_is_red_on_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor.check_compiler(on_cpu=True).state == "red"
    assert doctor.check_compiler(on_cpu=False).state == "amber"
    assert "compiler" in doctor.check_compiler(on_cpu=True).found
    monkeypatch.setenv("CXX", "true")
    spaced = doctor.check_compiler(on_cpu=True, prefix="/home/a b/.venv")
    assert spaced.state == "red" and spaced.found == "lacks a path without spaces"


def test_a_lock_left_by_a_killed_build_is_found(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "some op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    made = lock.stat().st_mtime
    assert doctor.check_builds(tmp_path, made + 1).state == "green"
    late = doctor.check_builds(tmp_path, made + doctor.STALE_BUILD_S + 1)
    assert late.state == "red" and f"'{lock}'" in late.fix


def test_small_shared_memory_is_red_on_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    (tmp_path / "deepspeed_allreduce_buffer_0_x_0").touch()
    small = doctor.check_shared_memory(tmp_path, on_cpu=True)
    assert small.state == "red" and "--shm-size" in small.fix and "rm " in small.fix
    assert doctor.check_shared_memory(tmp_path, on_cpu=False).state == "green"


@pytest.mark.parametrize(("free", "state"), [(0.1, "red"), (2, "amber"), (50, "green")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * doctor.GIB))
    assert doctor.check_disk(tmp_path).state == state


def test_packages_outside_the_required_range_are_red(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = doctor.importlib.metadata
    real = metadata.version
    lines = ["torch>=999", "numpy>=1", "absent-thing", "left-out; extra == 'y'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.0" if name == "roma_ds" else real(name))
    found = names(list(doctor.check_packages()))
    assert {name: check.state for name, check in found.items()} == {
        "roma_ds": "green",
        "torch": "red",
        "numpy": "green",
        "absent-thing": "red",
    }


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from roma_ds.cli.doctor import run_doctor; run_doctor()\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'faiss', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
