"""Prefix caches on a disk that is too small, fills up, or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_folders import MIB, assert_holds_all, content, fill, finished, free_bytes, plan, same, values

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.prefix import disk_room
from roma_ds.prefix.prefix_cache import open_cache


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


def assert_says(error: EnvironmentFault, folder: Path, needed: int) -> None:
    assert error.exit_code == 3
    assert f"({needed} bytes)" in error.message
    assert "free are" in error.message
    assert str(folder) in error.message
    assert error.fix is not None and error.fix.startswith("train.prefix_cache=off, or another output_dir")


NEEDED = 22 * 6 * 2 + 13 * 7


@pytest.mark.parametrize("reserve", [0, 1 << 30])
def test_a_small_disk_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: int
) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", reserve)
    folder = tmp_path / "run" / "prefix"
    free_bytes(monkeypatch, NEEDED + reserve - 1)
    with pytest.raises(EnvironmentFault) as caught:
        plan(folder)
    assert_says(caught.value, folder, NEEDED)
    assert f"({NEEDED + reserve - 1} bytes)" in caught.value.message
    assert os.listdir(tmp_path) == []
    free_bytes(monkeypatch, NEEDED + reserve)
    plan(folder)


def test_a_finished_cache_is_kept_where_there_is_no_room_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path, "old")
    before = content(tmp_path)
    free_bytes(monkeypatch, NEEDED - 1)
    with pytest.raises(EnvironmentFault, match="delete the older prefix cache") as caught:
        plan(tmp_path, "new")
    assert_says(caught.value, tmp_path, NEEDED)
    assert content(tmp_path) == before
    with pytest.raises(EnvironmentFault) as caught:
        plan(tmp_path, "new", lengths=[MIB])
    assert "older" not in str(caught.value), "deleting it would not help"
    assert_holds_all(open_cache(tmp_path, "old"))


def test_an_unfinished_cache_of_another_plan_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(plan(tmp_path, "old", lengths=[50_000, 3]), [1])
    free_bytes(monkeypatch, 0)
    assert not plan(tmp_path, "new").resumed
    free_bytes(monkeypatch, 0)
    assert plan(tmp_path, "new").resumed, "its space is taken already"


def full(*_: Any) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("existing", [True, False])
def test_a_disk_that_fills_while_space_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, existing: bool
) -> None:
    folder = tmp_path / "run" / "prefix"
    if existing:
        finished(folder, "old")
        (folder / "journal.jsonl").write_text("not of the cache")
    before, calls = content(tmp_path), []
    allocate = os.posix_fallocate

    def fills(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) > nth:
            full()
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", fills)
    with pytest.raises(EnvironmentFault, match="the disk is full") as caught:
        plan(folder, "new")
    assert_says(caught.value, folder, NEEDED)
    assert len(calls) == nth + 1
    assert content(tmp_path) == before
    if existing:
        assert_holds_all(open_cache(folder, "old"))
    else:
        assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_while_values_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "other")
    (tmp_path / "stage.json").write_text("{}")
    before = content(tmp_path)
    cache = plan(tmp_path / "new")
    fill(cache, [0, 2])
    cache.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(EnvironmentFault, match="the disk is full") as caught:
            fill(cache, [4])
        assert_says(caught.value, tmp_path / "new", NEEDED)
    assert {name: each for name, each in content(tmp_path).items() if not name.startswith("new/")} == before
    with pytest.raises(UserError, match="is unfinished"):
        open_cache(tmp_path / "new", "abc")
    again = plan(tmp_path / "new")
    assert again.missing().tolist() == [1, 3, 4, 5, 6]
    fill(again)
    again.finish()
    assert_holds_all(open_cache(tmp_path / "new", "abc"))


def test_a_file_system_that_cannot_take_space_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert_holds_all(finished(tmp_path))


def test_another_fault_of_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = finished(tmp_path)

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(EnvironmentFault, match="Input/output error") as caught:
        cache.read([0])
    assert "train.prefix_cache=off" in str(caught.value)


def test_short_writes_and_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:5], place))
    monkeypatch.setattr(os, "preadv", lambda file, parts, place: read(file, [parts[0][:7]], place))
    assert_holds_all(finished(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_that_is_too_small(small_disk: Path) -> None:
    finished(small_disk / "old", lengths=[3 * MIB // 12])
    before = content(small_disk)
    with pytest.raises(EnvironmentFault, match="needs") as caught:
        plan(small_disk / "new", lengths=[6 * MIB // 12])
    assert_says(caught.value, small_disk / "new", 6 * MIB + 13)
    assert content(small_disk) == before
    assert os.listdir(small_disk) == ["old"]


@pytest.mark.parametrize("name", ["new", "old"])
def test_a_real_disk_that_is_smaller_than_it_says(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with a quota: only taking the space shows that there is none."""
    finished(small_disk / "old", lengths=[3 * MIB // 12])
    before = content(small_disk)
    free_bytes(monkeypatch, 1 << 40)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        plan(small_disk / name, "new", lengths=[MIB // 12, MIB // 2])
    assert content(small_disk) == before
    assert os.listdir(small_disk) == ["old"]
    assert_holds_all(open_cache(small_disk / "old", "abc"))
    plan(small_disk / name, "new", lengths=[4 * MIB // 12])


def test_a_real_disk_that_fills_while_values_are_written(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(small_disk / "old", lengths=[3 * MIB // 12])
    before = content(small_disk)

    def unsupported(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    free_bytes(monkeypatch, 1 << 40)
    cache = plan(small_disk / "new", lengths=[2 * MIB // 12] * 4)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        fill(cache)
    cache.flush()
    again = plan(small_disk / "new", lengths=[2 * MIB // 12] * 4)
    assert again.missing().tolist() == [2, 3]
    assert same(again.read([1, 0]), torch.cat([values(1, 2 * MIB // 12, 6), values(0, 2 * MIB // 12, 6)]))
    kept = {name: each for name, each in content(small_disk).items() if name.startswith("old/")}
    assert kept == before
