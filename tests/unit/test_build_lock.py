"""The lock of an extension whose builder was killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from roma_ds.comm import build_lock

HOLDS = "import sys, time; from torch.utils.file_baton import FileBaton as B; b = B(sys.argv[1]); "
HOLDS += "assert b.try_acquire(); print('held', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileBaton, "wait", FileBaton.wait)
    monkeypatch.setattr(build_lock, "LEFT_AFTER_S", 0.3)


def test_a_killed_builder_is_not_waited_for_and_a_living_one_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    (tmp_path / "extension.so").touch()
    build_lock.outlive_killed_builders()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None and builder.stdout.readline() == b"held\n"
        mine = FileBaton(str(lock))
        assert not mine.try_acquire()
        waiting = threading.Thread(target=mine.wait, daemon=True)
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive() and lock.exists()
        builder.kill()
    waiting.join(20)
    assert not waiting.is_alive() and not lock.exists()


def test_what_another_host_may_still_compile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_lock, "LEFT_UNBUILT_AFTER_S", 1.0)
    lock = tmp_path / "lock"
    lock.touch()
    build_lock.outlive_killed_builders()
    started = time.monotonic()
    FileBaton(str(lock)).wait()
    assert not lock.exists() and time.monotonic() - started > 1.0
