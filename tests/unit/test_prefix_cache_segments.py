"""Prefix caches whose sequences begin alike: what is written is read, whoever wrote it."""

from __future__ import annotations

import os

import pytest
import torch
from cache_folders import content, same, values
from cache_trees import DTYPE, HIDDEN, made, related, states, written
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.prefix import disk_room
from roma_ds.prefix.feed import CachePart, Feed
from roma_ds.prefix.prefix_cache import open_cache, open_plan
from roma_ds.sequences.encoding import Encoded


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "RESERVE", 0)


# Values


@settings(max_examples=60)
@given(related(), st.integers(1, 4), st.data())
def test_written_by_several_in_any_order_it_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], shards: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    numbers = list(range(len(sequences)))
    order = data.draw(st.permutations(numbers))
    asked = data.draw(st.lists(st.sampled_from(numbers), max_size=6))
    flushes = data.draw(st.sets(st.sampled_from(numbers)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        made(folder, sequences, shards)
        writers = [open_plan(folder, "f") for _ in range(3)]
        for number in order:
            writer = writers[data.draw(st.integers(0, 2))]
            writer.write(number, states(sequences[number]))
            if number in flushes:
                writer.flush()
        for writer in writers:
            writer.flush()
        writers[0].finish()
    cache = open_cache(folder, "f")
    for number, sequence in enumerate(sequences):
        assert same(cache.read([number]), states(sequence))
    wanted = torch.cat(
        [torch.empty(0, HIDDEN, dtype=DTYPE), *(states(sequences[number]) for number in asked)]
    )
    assert same(cache.read(asked), wanted)
    once, places = cache.read_once(asked)
    assert same(once[places], wanted)
    distinct = {segment for number in asked for segment in cache.plan.segments.path(number)}
    assert len(once) == sum(int(cache.plan.segments.lengths[segment]) for segment in distinct)


@settings(max_examples=40)
@given(related(), st.data())
def test_the_bytes_do_not_depend_on_who_came_first(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], data: st.DataObject
) -> None:
    """Batches give the same token other last bits: here each sequence gives its own, and one counts."""
    folders = [tmp_path_factory.mktemp("cache") for _ in range(2)]
    numbers = list(range(len(sequences)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for folder in folders:
            made(folder, sequences, 2)
            writers = [open_plan(folder, "f") for _ in range(2)]
            for number in data.draw(st.permutations(numbers)):
                writer = writers[data.draw(st.integers(0, 1))]
                writer.write(number, values(number, sequences[number].length, HIDDEN, DTYPE))
                if data.draw(st.booleans()):
                    writer.flush()
            for writer in writers:
                writer.flush()
            writers[0].finish()
    assert content(folders[0]) == content(folders[1])
    cache = open_cache(folders[0], "f")
    for number in numbers:
        cache.read([number])


@settings(max_examples=40)
@given(related(), st.data())
def test_killed_it_goes_on_with_what_is_missing(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], data: st.DataObject
) -> None:
    folder, other = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("whole")
    numbers = list(range(len(sequences)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        flushed = data.draw(st.lists(st.sampled_from(numbers), max_size=5))
        lost = data.draw(st.lists(st.sampled_from(numbers), max_size=3))
        killed = made(folder, sequences)
        for number in flushed:
            killed.write(number, states(sequences[number]))
        killed.flush()
        for number in lost:
            killed.write(number, states(sequences[number]))
        del killed
        again = made(folder, sequences)
        assert again.resumed
        missing = again.missing().tolist()
        assert missing == sorted(set(missing) - set(flushed))
        if missing:
            with pytest.raises(ValueError, match="are not in the prefix cache"):
                again.finish()
        for number in missing:
            again.write(number, states(sequences[number]))
        again.finish()
        written(other, sequences)
    assert content(folder) == content(other)


@settings(max_examples=40)
@given(related(), st.integers(1, 3), st.data())
def test_a_flipped_bit_is_found_by_each_sequence_that_reads_it_and_by_no_other(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], shards: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        planned = written(folder, sequences, shards).plan
    segment = data.draw(st.integers(0, len(planned.segments.lengths) - 1))
    shard = folder / f"hidden-{segment % shards:05d}.bin"
    damaged = bytearray(shard.read_bytes())
    byte = data.draw(st.integers(0, int(planned.sizes[segment]) - 1))
    damaged[int(planned.offsets[segment]) + byte] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(damaged)
    index = (folder / "index.json").read_bytes()
    for number, sequence in enumerate(sequences):
        (folder / "index.json").write_bytes(index)
        cache = open_cache(folder, "f")
        if segment not in planned.segments.path(number):
            assert same(cache.read([number]), states(sequence))
            continue
        with pytest.raises(EnvironmentFault, match=rf"{shard.name} has changed .* sequence {number} "):
            cache.read([number])
        with pytest.raises(UserError, match="is unfinished"):
            open_cache(folder, "f")
    again = made(folder, sequences)
    assert again.resumed
    owner = min(number for number in range(len(sequences)) if segment in planned.segments.path(number))
    assert again.missing().tolist() == [owner]
    again.write(owner, states(sequences[owner]))
    again.finish()
    for number, sequence in enumerate(sequences):
        assert same(open_cache(folder, "f").read([number]), states(sequence))


# Batches


@given(related(), st.booleans(), st.data())
def test_a_batch_is_fed_the_same_from_a_cache_that_shares_and_from_one_that_does_not(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[Encoded], shared: bool, data: st.DataObject
) -> None:
    numbers = list(range(len(sequences)))
    chosen = data.draw(st.lists(st.sampled_from(numbers), unique=True))
    part = data.draw(st.permutations(numbers))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for once in (True, False):
            cache = made(tmp_path_factory.mktemp("cache"), sequences, 2, once)
            for number, sequence in enumerate(sequences):
                cache.write(number, states(sequence))
            cache.finish()
            feed = Feed(sequences, "last1", cache, shared)
            moved = Feed([sequences[one] for one in part], "last1", CachePart(cache, part), shared)
            found.append([one.batch(chosen).entering for one in (feed, moved)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and same(one, other)
    if not shared and chosen:
        assert same(found[0][0], torch.cat([states(sequences[number]) for number in chosen]))
