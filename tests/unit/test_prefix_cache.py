from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.backbone import disk_room
from roma_ds.backbone.prefix_cache import PrefixCache, disk_bytes, open_cache, open_plan, plan_cache
from roma_ds.errors import EnvironmentFault, UserError

MIB = 1 << 20
LENGTHS = [3, 0, 5, 1, 4, 2, 7]


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


def values(sequence: int, length: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Every bit pattern may occur, NaN and infinity too."""
    bits = np.random.default_rng(sequence).integers(0, 256, length * hidden * dtype.itemsize, np.uint8)
    made = torch.empty(length, hidden, dtype=dtype)
    made.view(-1).view(torch.uint8).copy_(torch.from_numpy(bits))
    return made


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def plan(folder: Path, fingerprint: str = "abc", **changes: Any) -> PrefixCache:
    given_plan: dict[str, Any] = {
        "lengths": LENGTHS,
        "hidden": 6,
        "dtype": torch.bfloat16,
        "first_layer": 2,
        "shards": 2,
    }
    return plan_cache(folder, fingerprint=fingerprint, **{**given_plan, **changes})


def fill(cache: PrefixCache, sequences: list[int] | None = None) -> None:
    for sequence in range(len(cache.plan.lengths)) if sequences is None else sequences:
        length = int(cache.plan.lengths[sequence])
        cache.write(sequence, values(sequence, length, cache.plan.hidden, cache.plan.dtype))


def finished(folder: Path, fingerprint: str = "abc", **changes: Any) -> PrefixCache:
    cache = plan(folder, fingerprint, **changes)
    fill(cache)
    cache.finish()
    return cache


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def assert_holds_all(cache: PrefixCache) -> None:
    for sequence, length in enumerate(cache.plan.lengths):
        expected = values(sequence, int(length), cache.plan.hidden, cache.plan.dtype)
        assert same(cache.read([sequence]), expected)


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
        cache = plan_cache(folders[0], lengths, hidden, dtype, 1, "f", shards)
        for sequence in [*order, *twice]:
            cache.write(sequence, values(sequence, lengths[sequence], hidden, dtype))
            if sequence in flushes:
                cache.flush()
        cache.finish()
        # In their order, into strided memory, each by a writer of its own.
        plan_cache(folders[1], lengths, hidden, dtype, 1, "f", shards)
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
    plan_cache(folder, lengths, hidden, dtype, 1, "f", 2)
    sizes = {name: len(each) for name, each in content(folder).items()}
    del sizes["index.json"]
    header = sizes["lengths.npy"] - 8 * len(lengths)
    assert sum(sizes.values()) - header == disk_bytes(lengths, hidden, dtype)


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
        "format": 1,
        "complete": True,
        "fingerprint": "abc",
        "first_layer": 2,
        "hidden": 6,
        "dtype": "bfloat16",
        "sequences": 7,
        "tokens": 22,
        "shards": [{"name": "hidden-00000.bin", "bytes": 228}, {"name": "hidden-00001.bin", "bytes": 36}],
    }
    np.testing.assert_array_equal(np.load(tmp_path / "lengths.npy"), np.array(LENGTHS, np.int64))
    assert sorted(content(tmp_path)) == [
        "hidden-00000.bin",
        "hidden-00001.bin",
        "index.json",
        "lengths.npy",
        "written.bin",
    ]


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
    assert set(content(tmp_path)) == {
        "hidden-00000.bin",
        "hidden-00001.bin",
        "index.json",
        "journal.jsonl",
        "lengths.npy",
        "written.bin",
    }
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


@pytest.mark.parametrize("step", range(1, 13))
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
    assert sorted(os.listdir(tmp_path)) == [
        "hidden-00000.bin",
        "hidden-00001.bin",
        "index.json",
        "lengths.npy",
        "written.bin",
    ]


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


# Reasons to refuse


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


@pytest.mark.parametrize("name", ["hidden-00000.bin", "hidden-00001.bin", "written.bin"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size(tmp_path: Path, name: str, change: int) -> None:
    finished(tmp_path)
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size + change)
    assert refusal(tmp_path) == f"{tmp_path / name} has another size than when it was written"
    assert not plan(tmp_path).resumed
    assert os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["hidden-00000.bin", "hidden-00001.bin", "written.bin", "lengths.npy"])
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
        {"format": 2},
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


# A disk that is too small


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def assert_says(error: EnvironmentFault, folder: Path, needed: int) -> None:
    assert error.exit_code == 3
    assert f"({needed} bytes)" in error.message
    assert "free are" in error.message
    assert str(folder) in error.message
    assert error.fix is not None and error.fix.startswith("train.prefix_cache=off, or another output_dir")


NEEDED = 22 * 6 * 2 + 9 * 7


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
    assert_says(caught.value, small_disk / "new", 6 * MIB + 9)
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
