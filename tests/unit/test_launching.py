"""What `roma-ds` does in front of a launcher, with a stand-in for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from roma_ds.cli import commands, launching
from roma_ds.cli.launcher_flags import LOCAL, LauncherFlags, read_launcher_flags
from roma_ds.errors import NOBODY_READS
from roma_ds.storage import shared_buffers

RANK_THAT_STAYS = """
import signal, time

def note(signum, frame):
    print("asked", file=open({asked!r}, "a"))

for signum in (signal.SIGINT, signal.SIGUSR1):
    signal.signal(signum, note)
open({up!r}, "w").close()
while True:
    time.sleep(0.05)
"""

RANK_THAT_SAVES = """
import signal, sys

def save(signum, frame):
    open({asked!r}, "w").write("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
open({up!r}, "w").close()
while True:
    signal.pause()
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setattr(launching, "_TOOLS", str(folder))
    return folder


def launcher(tools: Path, script: str) -> None:
    """A `deepspeed` of these lines."""
    program = tools / "deepspeed"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


def test_buffers_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_buffers, "SHARED_MEMORY", tmp_path)
    start = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_1234"
    other_user = f"deepspeed_allreduce_buffer_{os.getuid() + 1}_127.0.0.1_1234_0"
    kept = {f"{start}5_0", f"{start}", other_user, f"x{start}_0"}
    for name in (*kept, f"{start}_0", f"{start}_11"):
        (tmp_path / name).touch()
    shared_buffers.forget_shared_buffers("127.0.0.1", "1234")
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_what_a_rank_leaves_that_died_before_all_had_met_is_removed(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(shared_buffers, "SHARED_MEMORY", memory)
    name = f"{memory}/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1"
    launcher(tools, f'touch {name}_"${{3#--master_port=}}"_1 {name}_9_1; kill -9 $$')
    assert launching.run_launcher(2, LauncherFlags((), LOCAL, {}), ["--config", "a.yaml"]) == 1
    assert [path.name for path in memory.iterdir()] == [Path(f"{name}_9_1").name]
    assert "a rank was killed" in capsys.readouterr().err


def test_the_launcher_reads_a_hostfile_without_its_mark(
    tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_bytes(b"\xef\xbb\xbflocalhost slots=2\n")
    launcher(tools, 'for word; do case $word in --hostfile=*) cat "${word#*=}"; echo "$word";; esac; done')
    flags = read_launcher_flags(["--hostfile", str(hostfile)])
    assert launching.run_launcher(None, flags, ["--config", "a.yaml"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[1] == "localhost slots=2"
    assert not Path(said[2].removeprefix("--hostfile=")).exists()


@pytest.mark.parametrize("typed", [1, 2, None])
def test_what_a_shell_has_left_of_other_ranks_is_ignored_with_a_word(
    typed: int | None,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    left = {"WORLD_SIZE": "1", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_SIZE": "4", "GROUP_RANK": "0"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    launcher(tools, "printenv " + " ".join(left))
    flags = LauncherFlags((), LOCAL, {})
    commands._forget_left_ranks(typed, typed or 2, flags)
    said = capfd.readouterr()
    assert all(f"{name}={value}" in said.err for name, value in left.items()) and said.err.count("\n") == 1
    assert not left.keys() & os.environ.keys()
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert launching.run_launcher(typed or 2, flags, ["--config", "a.yaml"]) == 1, "printenv found none"
    assert len(capfd.readouterr().out.splitlines()) == 1


def test_ranks_that_something_else_started_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    commands._forget_left_ranks(None, 1, LauncherFlags((), LOCAL, {}))
    assert os.environ["WORLD_SIZE"] == "1"


def test_ranks_save_where_nobody_reads_their_output_any_more(
    tools: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `roma-ds train run.yaml | head -1`; the launcher says nothing of it."""
    asked, up = tmp_path / "asked", tmp_path / "up"
    rank = tmp_path / "rank.py"
    rank.write_text(RANK_THAT_SAVES.format(asked=str(asked), up=str(up)))
    launcher(tools, f"bash -c '{sys.executable} {rank}; echo the launcher goes on >&2'; echo and on >&2")
    kept = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)

    def read_no_more() -> None:
        wait_for(up)
        os.close(reader)

    head = threading.Thread(target=read_no_more, daemon=True)
    head.start()
    try:
        code = launching.run_launcher(2, LauncherFlags((), LOCAL, {}), ["--config", "a.yaml"])
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
    assert (asked.read_text(), code) == ("saved", NOBODY_READS)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGUSR1])
def test_ranks_are_waited_for_until_ctrl_c_comes_once_more(
    first: signal.Signals,
    tools: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launching, "SAYS_SO_AFTER_S", 0.1)
    monkeypatch.setattr(launching, "SAME_KEY_S", 0.3)
    asked, up = tmp_path / "asked", tmp_path / "up"
    rank = tmp_path / "rank.py"
    rank.write_text(RANK_THAT_STAYS.format(asked=str(asked), up=str(up)))
    # The ranks are grandchildren of the deepspeed command.
    launcher(tools, f"bash -c '{sys.executable} -S {rank}; exit 7'; exit 7")

    def press() -> None:
        wait_for(up)
        os.kill(os.getpid(), first)
        wait_for(asked)
        time.sleep(1.6)
        os.kill(os.getpid(), signal.SIGINT)

    keys = threading.Thread(target=press, daemon=True)
    keys.start()
    assert launching.run_launcher(2, LauncherFlags((), LOCAL, {}), ["--config", "a.yaml"]) == 128 + first
    keys.join()
    assert asked.read_text() == "asked\n", "the second one is not passed on"
    assert "Ctrl-C once more" in capsys.readouterr().err
