from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from roma_ds.errors import UserError
from roma_ds.storage import run_lock
from roma_ds.storage.run_lock import NAME, locked


def held_by(folder: Path, **facts: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps({**run_lock._this_process(), **facts}))


def test_a_lock_is_gone_afterwards_also_after_a_failure(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == [NAME]
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run"):
        raise ZeroDivisionError
    assert not os.listdir(tmp_path / "run")


def test_a_run_of_this_host_is_named(tmp_path: Path) -> None:
    parent = os.getppid()
    held_by(tmp_path, pid=parent, started=run_lock._started(parent))
    with (
        pytest.raises(UserError, match=f"is in use by process {parent} on host") as refused,
        locked(tmp_path),
    ):
        pass
    assert refused.value.exit_code == 2 and "another output_dir" in str(refused.value)
    assert os.listdir(tmp_path) == [NAME]


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_a_dead_process_is_followed(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    held_by(tmp_path, pid=int(gone.stdout), started="1")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not os.listdir(tmp_path)


def test_a_number_that_went_to_another_process_is_no_holder(tmp_path: Path) -> None:
    held_by(tmp_path, pid=os.getppid(), started="0")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_host_that_started_anew_holds_nothing(tmp_path: Path) -> None:
    parent = os.getppid()
    held_by(tmp_path, pid=parent, started=run_lock._started(parent), boot="of last week")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_another_host_is_named_and_never_followed(tmp_path: Path) -> None:
    held_by(tmp_path, host="node7", pid=2**22 + 1)
    with pytest.raises(UserError, match="on host node7") as refused, locked(tmp_path):
        pass
    assert f"delete {tmp_path / NAME}" in str(refused.value)


def test_another_container_is_named_and_never_followed(tmp_path: Path) -> None:
    held_by(tmp_path, namespace="pid:[1]", pid=2**22 + 1)
    with pytest.raises(UserError, match="another container") as refused, locked(tmp_path):
        pass
    assert f"delete {tmp_path / NAME}" in str(refused.value)
    assert run_lock.holder_of(tmp_path) is not None


def test_after_a_restart_of_the_host_containers_hold_nothing(tmp_path: Path) -> None:
    held_by(tmp_path, namespace="pid:[1]", boot="before")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_lock_that_names_no_namespace_is_one_of_this(tmp_path: Path) -> None:
    facts = run_lock._this_process() | {"pid": 2**22 + 1}
    del facts["namespace"]
    (tmp_path / NAME).write_text(json.dumps(facts))
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_process_in_a_namespace_of_its_own_keeps_its_lock(tmp_path: Path) -> None:
    apart = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process have a PID namespace of its own")
    held = (
        "import sys; from pathlib import Path; from roma_ds.storage.run_lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [*apart, sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another container"), locked(tmp_path):
            pass
        other.stdin.close()
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("job", "restarts", "follows"), [("4711", "1", True), ("4711", "0", False), ("4712", "1", False)]
)
def test_a_slurm_job_follows_its_own_earlier_start_on_another_host(
    job: str, restarts: str, follows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    held_by(tmp_path, host="node7")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    with nullcontext() if follows else pytest.raises(UserError, match="on host node7"), locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": "x"}'])
def test_a_lock_that_says_nothing_is_followed(content: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def hold_in_turn(folder: str, turns: int, shared: str) -> None:
    for _ in range(turns):
        try:
            with locked(Path(folder)):
                # Two holders at once would both find the file absent, or absent at the end.
                handle = os.open(shared, os.O_CREAT | os.O_EXCL)
                os.close(handle)
                os.unlink(shared)
        except UserError:
            continue


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    held_by(tmp_path / "run", pid=2**22 + 1, started="1")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=hold_in_turn, args=(str(tmp_path / "run"), 200, str(tmp_path / "shared")))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not os.listdir(tmp_path / "run")


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    held_by(tmp_path, pid=2**22 + 1, started="1")
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    assert not os.listdir(tmp_path)
