"""Prefix caches that are refused: absent, of something else, damaged."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cache_folders import LENGTHS, assert_holds_all, content, fill, finished, plan

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.prefix import disk_room
from roma_ds.prefix.prefix_cache import open_cache, open_plan


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


def change_index(folder: Path, **entries: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **entries}))


def refusal(folder: Path, fingerprint: str = "abc") -> str:
    with pytest.raises(UserError) as caught:
        open_cache(folder, fingerprint)
    assert caught.value.fix is not None and "train.prefix_cache=off" in caught.value.fix
    return caught.value.message


def test_an_absent_cache(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"there is no prefix cache in {tmp_path / 'absent'}"
    assert refusal(tmp_path) == f"there is no prefix cache in {tmp_path}"
    with pytest.raises(UserError, match="there is no prefix cache"):
        open_plan(tmp_path, "abc")


def test_a_cache_of_something_else(tmp_path: Path) -> None:
    finished(tmp_path)
    assert "was made from another model, data or layers" in refusal(tmp_path, "abd")


@pytest.mark.parametrize("name", ["hidden-00000.bin", "hidden-00001.bin", "written.bin", "checksums.bin"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(tmp_path: Path, name: str, change: int) -> None:
    finished(tmp_path)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size + change)
    assert refusal(tmp_path) == f"{tmp_path / name} has another size than when it was written"
    assert not plan(tmp_path).resumed
    assert os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["hidden-00001.bin", "written.bin", "checksums.bin", "lengths.npy"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    finished(tmp_path)
    (tmp_path / name).unlink()
    assert refusal(tmp_path) == f"{tmp_path / name} is missing"
    assert not plan(tmp_path).resumed


def test_lengths_in_another_order(tmp_path: Path) -> None:
    """The total is the same, the places are not."""
    finished(tmp_path)
    np.save(tmp_path / "lengths.npy", np.array([5, 0, 3, *LENGTHS[3:]], np.int64))
    assert "lengths.npy has other content" in refusal(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        {"format": 1},
        {"hidden": "x"},
        {"hidden": 7},
        {"hidden": 0},
        {"hidden": 10**30},
        {"dtype": "int4"},
        {"dtype": []},
        {"shards": []},
        {"shards": None},
        {"shards": [{"name": "../other", "bytes": 264}]},
        {"shards": [{"name": "hidden-00000.bin"}]},
        {"complete": "yes"},
        {"first_layer": None},
    ],
)
def test_a_damaged_index(tmp_path: Path, entries: dict[str, Any]) -> None:
    finished(tmp_path)
    change_index(tmp_path, **entries)
    assert "index.json" in refusal(tmp_path)
    assert not plan(tmp_path).resumed


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"3", b"{}"])
def test_an_index_that_is_none(tmp_path: Path, text: bytes) -> None:
    finished(tmp_path)
    (tmp_path / "index.json").write_bytes(text)
    assert "index.json" in refusal(tmp_path)
    assert not plan(tmp_path).resumed


def test_a_shard_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    cache = finished(tmp_path)
    os.truncate(tmp_path / "hidden-00000.bin", 100)
    with pytest.raises(UserError, match=r"hidden-00000\.bin is shorter"):
        cache.read([6])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the folder"):
        plan(tmp_path / "file" / "cache")
    assert content(tmp_path) == {"file": b""}


@pytest.mark.parametrize("name", ["hidden-00000.bin", "checksums.bin"])
def test_one_flipped_bit_is_found_and_the_cache_made_again(tmp_path: Path, name: str) -> None:
    """Sequence 4 lies in the first shard behind 0 and 2: 8 rows of 6 numbers of 2 bytes."""
    whole = finished(tmp_path)
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[8 * 12 + 5 if name.startswith("hidden") else 4 * 4] ^= 1 << 3
    (tmp_path / name).write_bytes(damaged)
    whole.read([0, 1, 2, 3])
    for cache in (whole, open_cache(tmp_path, "abc")):
        with pytest.raises(EnvironmentFault, match=r"hidden-00000\.bin has changed .* sequence 4 ") as caught:
            cache.read([3, 4])
        assert caught.value.fix is not None and "makes the prefix cache again" in caught.value.fix
        cache.read([5, 6])
    assert refusal(tmp_path) == f"the prefix cache in {tmp_path} is unfinished"
    again = plan(tmp_path)
    assert again.resumed and again.missing().tolist() == [4]
    fill(again)
    again.finish()
    assert_holds_all(open_cache(tmp_path, "abc"))


def test_values_are_compared_when_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    seen: list[int] = []

    def counted(content: Any) -> int:
        seen.append(len(content))
        return zlib.crc32(content)

    monkeypatch.setattr("roma_ds.prefix.prefix_cache.zlib", SimpleNamespace(crc32=counted))
    cache = open_cache(tmp_path, "abc")
    for _ in range(3):
        cache.read([2, 0, 2])
    assert seen == [5 * 12, 3 * 12]
