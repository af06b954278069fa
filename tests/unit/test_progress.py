from __future__ import annotations

import re
import sys

import pytest

from roma_ds import progress
from roma_ds.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_off_a_terminal_there_is_a_line_every_few_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "embed", "texts") as bar:
        for _ in range(100):
            clock.now += 0.2
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "embed: 100/100 texts (20 s)"
    assert 3 <= len(lines) <= 5
    assert lines[0] == "embed: 25/100 texts (5 s, about 15 s left)"
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_on_a_terminal_one_line_is_redrawn(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "collect") as bar:
        for _ in range(4):
            clock.now += 1.0
            bar.advance()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.endswith("\n")
    drawn = text.split("\r")[1:]
    assert "[######..................] collect: 1/4 samples (1 s, about 3 s left)" in drawn[0]
    assert "[########################] collect: 4/4 samples (4 s)" in drawn[-1]


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "collect", enabled=False) as bar:
        clock.now += 60.0
        bar.advance(10)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.parametrize(("total", "done"), [(0, 0), (0, 3), (5, 0), (5, 9)])
def test_odd_counts_are_drawn_and_do_not_crash(
    clock: Clock, capsys: pytest.CaptureFixture[str], total: int, done: int
) -> None:
    with Progress(total, "x") as bar:
        clock.now += 6.0
        bar.advance(done)
    assert re.search(rf"x: {done}/{total} samples \(6 s.*\)\n$", capsys.readouterr().err)


def test_the_last_line_is_drawn_when_the_work_fails(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="boom"), Progress(10, "x") as bar:
        bar.advance(3)
        raise ValueError("boom")
    assert "x: 3/10" in capsys.readouterr().err
