"""Every command ends in silence where what reads its output, such as `head`, has ended."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from roma_ds.cli.main import main
from roma_ds.errors import NOBODY_READS, nobody_reads
from roma_ds.pipeline import ending

CONFIG = """\
model: {path: demo}
data: {train: [{path: absent.jsonl}]}
eval: {tasks: [{name: a, path: absent.jsonl}]}
output_dir: out
"""


@contextlib.contextmanager
def nobody_reading() -> Iterator[None]:
    """Standard output into a pipe that nobody reads."""
    kept = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        with open(1, "w", closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        "train --help",
        "ls families",
        "ls tasks",
        "ls configs",
        "init olmoe",
        "plan olmoe-1b-7b",
        "plan olmoe-1b-7b --json",
        "doctor --json",
        "check run.yaml",
    ],
)
def test_a_command_into_a_closed_pipe(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    with nobody_reading():
        assert main(line.split()) == NOBODY_READS
    assert "Traceback" not in capfd.readouterr().err


def test_a_rank_into_a_closed_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    with nobody_reading():
        assert ending.explain(BrokenPipeError(), 0) == NOBODY_READS
    assert not capfd.readouterr().err


def test_a_broken_pipe_of_something_else_is_a_bug(capfd: pytest.CaptureFixture[str]) -> None:
    assert not nobody_reads()
    assert ending.explain(BrokenPipeError("of a socket"), 0) == 1
    assert "of a socket" in capfd.readouterr().err


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["roma-ds", "init", "nothing"])
    with pytest.warns(RuntimeWarning, match=r"found in sys\.modules"), pytest.raises(SystemExit) as ended:
        runpy.run_module("roma_ds.cli.main", run_name="__main__")
    assert ended.value.code == 2
    assert "there is no packaged config 'nothing'" in capfd.readouterr().err
