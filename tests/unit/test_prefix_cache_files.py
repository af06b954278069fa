"""Prefix caches whose sequences begin alike: their files, the room they take, and those made before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cache_folders import assert_holds_all, content, entering, fill, finished, free_bytes, plan, same
from cache_trees import DTYPE, HIDDEN, OPTIONS, four_options, made, related, states, written
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.prefix import disk_room
from roma_ds.prefix.prefix_cache import disk_bytes, open_cache, plan_cache
from roma_ds.prefix.segments import Segments
from roma_ds.sequences.encoding import Encoded


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


# Size


@given(related(), st.booleans(), st.integers(1, 3))
def test_files_take_what_was_planned_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], shared: bool, shards: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = made(folder, sequences, shards, shared)
    files = content(folder)
    del files["index.json"]
    headers = {
        name: len(file) - np.load(folder / name).nbytes for name, file in files.items() if ".npy" in name
    }
    assert set(headers.values()) == {128}
    taken = sum(map(len, files.values())) - sum(headers.values())
    cut = Segments.of(sequences, shared)
    assert taken == cache.plan.disk_bytes == disk_bytes(cut, entering(HIDDEN, DTYPE))
    hidden = sum(len(file) for name, file in files.items() if name.startswith("hidden-"))
    assert hidden == cut.tokens * HIDDEN * DTYPE.itemsize <= sum(one.length for one in sequences) * HIDDEN * 2
    saved = cut.tokens < cut.tokens_asked
    assert ("tree.npy" in files) == saved == (not cut.is_flat)


def test_four_options_of_a_question_take_less_than_their_share(tmp_path: Path) -> None:
    """30 tokens before each, 4 of an option, of which the last is only predicted: 132 asked, 42 kept."""
    sequences = four_options()
    wide = entering(256, DTYPE)
    sizes = []
    for name, shared in (("once", True), ("each", False)):
        cut = Segments.of(sequences, shared)
        plan_cache(tmp_path / name, cut, wide, 1, "f", 1)
        sizes.append(sum(map(len, content(tmp_path / name).values())))
        assert cut.tokens_asked == 25 * OPTIONS * 33
    assert cut.tokens == cut.tokens_asked
    cut = Segments.of(sequences, True)
    assert cut.tokens == 25 * 42 and len(cut.lengths) == 25 * 5
    assert sizes[1] >= 2.5 * sizes[0] > 2.5 * 25 * 42 * 256 * DTYPE.itemsize


def test_one_segment_more_or_less_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = four_options(questions=3)
    needed = disk_bytes(Segments.of(sequences, True), entering(HIDDEN, DTYPE))
    free_bytes(monkeypatch, needed - 1)
    with pytest.raises(EnvironmentFault, match=rf"needs .*\({needed} bytes\)"):
        made(tmp_path / "small", sequences)
    free_bytes(monkeypatch, needed)
    made(tmp_path / "enough", sequences)


# What is on disk


def test_the_files_of_a_tree(tmp_path: Path) -> None:
    trunk = tuple(range(10))
    sequences = [Encoded(0, (50, 51), (9,)), *(Encoded(row, (*trunk, 20 + row), (9,)) for row in (1, 2))]
    written(tmp_path, [*sequences, Encoded(3, trunk, (9,))], 2)
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["sequences"], index["tokens"], index["segments"], index["tokens_stored"]) == (4, 34, 4, 14)
    assert np.load(tmp_path / "lengths.npy").tolist() == [2, 10, 1, 1]
    tree = np.load(tmp_path / "tree.npy")
    assert tree.dtype == np.int32 and tree.tolist() == [-1, -1, 1, 1, 0, 2, 3, 1]
    assert (tmp_path / "written.bin").read_bytes() == b"\x01" * 4
    assert [(tmp_path / f"hidden-0000{shard}.bin").stat().st_size for shard in (0, 1)] == [18, 66]


@pytest.mark.parametrize("change", ["missing", "other", "short"])
def test_a_damaged_tree(tmp_path: Path, change: str) -> None:
    sequences = four_options(questions=2)
    written(tmp_path, sequences)
    tree = tmp_path / "tree.npy"
    if change == "missing":
        tree.unlink()
    elif change == "other":
        np.save(tree, np.load(tree)[::-1])
    else:
        tree.write_bytes(tree.read_bytes()[:-4])
    says = "is missing" if change == "missing" else "has other content than when it was written"
    with pytest.raises(UserError, match=rf"tree\.npy {says}"):
        open_cache(tmp_path, "f")
    assert not made(tmp_path, sequences).resumed


@pytest.mark.parametrize(
    ("lengths", "parents", "ends", "problem"),
    [
        ([3, 2], [-1, 1], [0, 1], "does not follow its parent"),
        ([3, 2], [-1, -2], [0, 1], "does not follow its parent"),
        ([3, 2], [-1], [0, 1], "not one parent"),
        ([3, 2], [-1, 0], [0, 2], "ends in no segment"),
        ([3, 2], [-1, 0], [-1, 1], "ends in no segment"),
        ([3, 2], [-1, 0], [0], "lies in no sequence"),
        ([3, -2], [-1, 0], [1], "whole numbers"),
    ],
)
def test_segments_that_contradict_each_other(
    lengths: list[int], parents: list[int], ends: list[int], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Segments(np.array(lengths), np.array(parents, np.int32), np.array(ends, np.int32))


def as_before(folder: Path) -> None:
    """Make a cache that shares nothing one of the format before."""
    index = json.loads((folder / "index.json").read_text())
    assert index.pop("tree_sha256") is None
    for name in ("segments", "tokens_stored"):
        del index[name]
    (folder / "index.json").write_text(json.dumps({**index, "format": 2}))


def test_a_cache_of_the_format_before_is_read(tmp_path: Path) -> None:
    finished(tmp_path)
    as_before(tmp_path)
    assert_holds_all(open_cache(tmp_path, "abc"))


@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_of_the_format_before_goes_on_as_it_began(tmp_path: Path, complete: bool) -> None:
    """It holds each sequence whole; what is new is that others would share."""
    sequences = four_options(questions=2)
    cache = made(tmp_path, sequences, shared=False)
    for number in range(8 if complete else 5):
        cache.write(number, states(sequences[number]))
    cache.flush()
    if complete:
        cache.finish()
    as_before(tmp_path)
    again = made(tmp_path, sequences)
    assert again.resumed and again.plan.segments.is_flat
    assert again.missing().tolist() == ([] if complete else [5, 6, 7])
    for number in again.missing().tolist():
        again.write(number, states(sequences[number]))
    again.finish()
    opened = open_cache(tmp_path, "f")
    assert all(same(opened.read([number]), states(one)) for number, one in enumerate(sequences))
    assert json.loads((tmp_path / "index.json").read_text())["format"] == 3


def test_a_plan_that_cuts_in_another_way_begins_anew(tmp_path: Path) -> None:
    trunk = tuple(range(20))
    first = Encoded(0, (*trunk, 40), (9,))
    written(tmp_path, [first, Encoded(1, (*trunk[:10], 30), (9,))])
    assert made(tmp_path, [first, Encoded(1, (*trunk[:10], 30), (9,))]).resumed
    assert not made(tmp_path, [first, Encoded(1, (*trunk[:9], 30, 31), (9,))]).resumed
    flat = plan(tmp_path, "f", lengths=[21, 11], hidden=HIDDEN, first_layer=1)
    assert not flat.resumed and not (tmp_path / "tree.npy").exists()
    fill(flat)
    flat.finish()
    assert_holds_all(open_cache(tmp_path, "f"))
