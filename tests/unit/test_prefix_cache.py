"""Prefix caches: what is written is read, and an unfinished one goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_folders import (
    BESIDE,
    LENGTHS,
    MIB,
    assert_holds_all,
    content,
    entering,
    fill,
    finished,
    free_bytes,
    plan,
    same,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.prefix import disk_room
from roma_ds.prefix.prefix_cache import disk_bytes, open_cache, open_plan, plan_cache
from roma_ds.prefix.segments import Segments


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


# Values


@settings(max_examples=80)
@given(st.data())
def test_what_is_written_in_any_order_is_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), max_size=12))
    hidden = data.draw(st.integers(1, 5))
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))
    shards = data.draw(st.integers(1, 5))
    numbers = list(range(len(lengths)))
    order = data.draw(st.permutations(numbers))
    twice = data.draw(st.lists(st.sampled_from(numbers), max_size=3)) if numbers else []
    asked = data.draw(st.lists(st.sampled_from(numbers), max_size=8)) if numbers else []
    flushes = data.draw(st.sets(st.sampled_from(numbers))) if numbers else set()
    folders = [tmp_path_factory.mktemp("cache") for _ in range(2)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        cache = plan_cache(folders[0], Segments.alone(lengths), entering(hidden, dtype), 1, "f", shards)
        for sequence in [*order, *twice]:
            cache.write(sequence, values(sequence, lengths[sequence], hidden, dtype))
            if sequence in flushes:
                cache.flush()
        cache.finish()
        # In their order, into strided memory, each by a writer of its own.
        plan_cache(folders[1], Segments.alone(lengths), entering(hidden, dtype), 1, "f", shards)
        for sequence in numbers:
            writer = open_plan(folders[1], "f")
            writer.write(sequence, values(sequence, lengths[sequence], hidden, dtype).T.contiguous().T)
            writer.flush()
            writer.close()
        open_plan(folders[1], "f").finish()

    assert content(folders[0]) == content(folders[1])
    assert (
        sum(len(each) for name, each in content(folders[0]).items() if name.startswith("hidden-"))
        == sum(lengths) * hidden * dtype.itemsize
    )
    for opened in (cache, open_cache(folders[1], "f")):
        read = opened.read(asked)
        expected = [values(sequence, lengths[sequence], hidden, dtype) for sequence in asked]
        assert same(read, torch.cat([torch.empty(0, hidden, dtype=dtype), *expected]))
        opened.close()
        assert same(opened.read(asked), read), "closed files are opened again"


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.integers(1, 5),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_the_estimate_is_what_the_files_take(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], hidden: int, dtype: torch.dtype
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    plan_cache(folder, Segments.alone(lengths), entering(hidden, dtype), 1, "f", 2)
    sizes = {name: len(each) for name, each in content(folder).items()}
    del sizes["index.json"]
    header = sizes["lengths.npy"] - 8 * len(lengths)
    assert sum(sizes.values()) - header == disk_bytes(Segments.alone(lengths), entering(hidden, dtype))


def test_what_is_read_is_memory_of_its_own(tmp_path: Path) -> None:
    cache = finished(tmp_path)
    first = cache.read([2, 2])
    first.view(torch.uint8).zero_()
    assert_holds_all(cache)


def test_the_index_says_what_the_cache_holds(tmp_path: Path) -> None:
    finished(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index.pop("lengths_sha256")
    assert index == {
        "format": 3,
        "complete": True,
        "fingerprint": "abc",
        "first_layer": 2,
        "hidden": 6,
        "dtype": "bfloat16",
        "sequences": 7,
        "tokens": 22,
        "segments": 7,
        "tokens_stored": 22,
        "tree_sha256": None,
        "shards": [{"name": "hidden-00000.bin", "bytes": 228}, {"name": "hidden-00001.bin", "bytes": 36}],
    }
    np.testing.assert_array_equal(np.load(tmp_path / "lengths.npy"), np.array(LENGTHS, np.int64))
    shards = ("hidden-00000.bin", "hidden-00001.bin")
    assert sorted(content(tmp_path)) == sorted((*shards, *BESIDE))


def test_no_sequences_at_all(tmp_path: Path) -> None:
    cache = finished(tmp_path / "none", lengths=[])
    assert cache.missing().size == 0
    assert open_cache(tmp_path / "none", "abc").read([]).shape == (0, 6)


def write_share(folder: str, first: int) -> None:
    cache = open_plan(Path(folder), "abc")
    for repeat in range(20):
        share = list(range(first, len(cache.plan.lengths), 2))
        random.Random(repeat).shuffle(share)
        fill(cache, share)
        cache.flush()


def test_two_processes_at_once(tmp_path: Path) -> None:
    lengths = [(7 * place) % 31 for place in range(60)]
    # Three shards: both processes write in each of them.
    cache = plan(tmp_path / "two", lengths=lengths, shards=3)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_share, args=(str(tmp_path / "two"), first)) for first in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache.finish()
    finished(tmp_path / "one", lengths=lengths, shards=3)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert_holds_all(open_cache(tmp_path / "two", "abc"))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_reading_does_not_hold_the_files_in_memory(tmp_path: Path) -> None:
    lengths = [MIB // 64] * 48
    cache = plan(tmp_path, lengths=lengths, hidden=64)
    one = values(0, lengths[0], 64)
    for sequence in range(len(lengths)):
        cache.write(sequence, one)
    cache.finish()
    cache = open_cache(tmp_path, "abc")
    assert sum(path.stat().st_size for path in tmp_path.glob("hidden-*")) == 96 * MIB
    before = resident()
    peak = 0
    for sequence in range(len(lengths)):
        read = cache.read([sequence])
        peak = max(peak, resident() - before)
        assert read.shape == one.shape
    assert peak < 24 * MIB


@pytest.mark.parametrize(
    ("sequence", "hidden", "problem"),
    [
        (7, torch.zeros(0, 6, dtype=torch.bfloat16), "sequence 7 of 7"),
        (-1, torch.zeros(7, 6, dtype=torch.bfloat16), "sequence -1 of 7"),
        (0, torch.zeros(4, 6, dtype=torch.bfloat16), r"\(4, 6\), planned were torch.bfloat16 \(3, 6\)"),
        (0, torch.zeros(3, 6), "torch.float32"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    tmp_path: Path, sequence: int, hidden: torch.Tensor, problem: str
) -> None:
    cache = plan(tmp_path)
    with pytest.raises((IndexError, ValueError), match=problem):
        cache.write(sequence, hidden)
    with pytest.raises(IndexError, match="of 7"):
        cache.read([0, 7])


@pytest.mark.parametrize(
    "changes",
    [{"lengths": [1, -1]}, {"hidden": 0}, {"shards": 0}, {"dtype": torch.int8}, {"lengths": [[1], [2]]}],
)
def test_plans_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lengths|no cache of"):
        plan(tmp_path / "cache", **changes)
    assert not content(tmp_path)


def test_odd_strides(tmp_path: Path) -> None:
    source = values(0, 6, 3)
    cache = plan(tmp_path, lengths=[3, 1, 0], shards=1)
    pieces = [source.T, source[:, :1].T, torch.ones(4, dtype=torch.bfloat16).as_strided((0, 6), (0, 0))]
    for sequence, piece in enumerate(pieces):
        cache.write(sequence, piece)
    assert same(cache.read([0, 1, 2]), torch.cat([piece.contiguous() for piece in pieces]))
    single = plan(tmp_path, lengths=[1, 0], hidden=1)
    single.write(0, torch.ones(1, dtype=torch.bfloat16).as_strided((1, 1), (0, 0)))
    single.write(1, torch.ones(4, dtype=torch.bfloat16).as_strided((0, 1), (0, 0)))
    assert single.read([1, 0]).tolist() == [[1.0]]


# Finishing and going on


def test_a_cache_with_a_hole_cannot_be_finished(tmp_path: Path) -> None:
    cache = plan(tmp_path)
    fill(cache, [0, 1, 3, 5, 6])
    with pytest.raises(ValueError, match="2 of 7 sequences are not in the prefix cache, the first is 2"):
        cache.finish()
    with pytest.raises(UserError, match="is unfinished"):
        open_cache(tmp_path, "abc")
    fill(cache, [4, 2])
    cache.finish()
    assert_holds_all(open_cache(tmp_path, "abc"))


def test_only_what_is_flushed_counts_as_written(tmp_path: Path) -> None:
    cache = plan(tmp_path)
    fill(cache, [1, 4])
    assert cache.missing().tolist() == list(range(7))
    cache.flush()
    assert cache.missing().tolist() == [0, 2, 3, 5, 6]
    fill(cache, [0])
    del cache
    again = plan(tmp_path)
    assert again.resumed
    assert again.missing().tolist() == [0, 2, 3, 5, 6]


def test_the_note_of_a_sequence_follows_its_values_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = plan(tmp_path)
    fill(cache)

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(EnvironmentFault, match="Input/output error"):
            cache.flush()
    assert cache.missing().tolist() == list(range(7))
    cache.flush()
    assert cache.missing().size == 0


def test_a_finished_cache_is_not_written(tmp_path: Path) -> None:
    cache = finished(tmp_path)
    for each in (cache, open_cache(tmp_path, "abc")):
        with pytest.raises(ValueError, match="finished"):
            each.write(0, values(0, 3, 6))
    with pytest.raises(UserError, match="finished already"):
        open_plan(tmp_path, "abc")


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_an_unfinished_cache_of_the_same_plan_goes_on(tmp_path: Path, shards: int) -> None:
    cache = plan(tmp_path)
    assert not cache.resumed
    fill(cache, [0, 2, 6])
    cache.flush()
    again = plan(tmp_path, shards=shards)
    assert again.resumed
    assert again.plan.shards == 2, "another number of ranks is no reason to begin again"
    fill(again, again.missing().tolist())
    again.finish()
    assert_holds_all(open_cache(tmp_path, "abc"))


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "other"},
        {"hidden": 7},
        {"dtype": torch.float16},
        {"first_layer": 3},
        {"lengths": [0, 3, *LENGTHS[2:]]},
        {"lengths": LENGTHS[:3]},
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_of_another_plan_is_replaced(tmp_path: Path, changes: dict[str, Any], complete: bool) -> None:
    (tmp_path / "journal.jsonl").write_text("not of the cache")
    old = plan(tmp_path, shards=4)
    fill(old)
    old.flush()
    if complete:
        old.finish()
    new = plan(tmp_path, **changes)
    assert not new.resumed
    assert new.missing().tolist() == list(range(len(new.plan.lengths)))
    shards = ("hidden-00000.bin", "hidden-00001.bin")
    assert set(content(tmp_path)) == {*shards, *BESIDE, "journal.jsonl"}
    assert not any(any(each) for name, each in content(tmp_path).items() if name.startswith("hidden-"))
    fill(new)
    new.finish()
    assert_holds_all(open_cache(tmp_path, new.plan.fingerprint))


def test_a_finished_cache_that_is_planned_again_counts_as_unfinished(tmp_path: Path) -> None:
    finished(tmp_path)
    again = plan(tmp_path)
    assert again.resumed
    assert again.missing().size == 0
    with pytest.raises(UserError, match="is unfinished"):
        open_cache(tmp_path, "abc")
    again.finish()
    assert_holds_all(open_cache(tmp_path, "abc"))


@pytest.mark.parametrize("step", range(1, 15))
def test_planning_that_is_killed_leaves_nothing_that_is_used(tmp_path: Path, step: int) -> None:
    """Killed at each removal and renaming in turn: there is the old cache or none, and it can be planned."""
    finished(tmp_path, "old")
    steps = 0

    def counted(call: Any) -> Any:
        def stopping(*arguments: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                raise KeyboardInterrupt
            return call(*arguments, **named)

        return stopping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "rename", counted(Path.rename))
        # A process that is killed cleans nothing up.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            plan(tmp_path, "new")
    try:
        assert_holds_all(open_cache(tmp_path, "old"))
    except UserError as error:
        assert "there is no prefix cache" in error.message
    again = plan(tmp_path, "new")
    assert not again.resumed
    shards = ("hidden-00000.bin", "hidden-00001.bin")
    assert sorted(os.listdir(tmp_path)) == sorted((*shards, *BESIDE))


@pytest.mark.parametrize("fingerprint", ["old", "new"])
def test_what_a_killed_planning_took_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: str
) -> None:
    finished(tmp_path, "old")
    (tmp_path / ".planning").mkdir()
    (tmp_path / ".planning" / "hidden-00000.bin").write_bytes(bytes(MIB))
    (tmp_path / ".planning" / ".lengths.npy.x.partial").write_bytes(bytes(9))
    free_bytes(monkeypatch, 0)
    plan(tmp_path, fingerprint)
    assert not (tmp_path / ".planning").exists()
