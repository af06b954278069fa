"""Keys and values of a tree and of what is written behind it, held to what each sequence has for itself."""

from __future__ import annotations

import random

import pytest
import torch
from related_prompts import Ids, related

import roma_ds.sequences.tree_cache as tree_cache
from roma_ds.sequences.prompt_batches import Room, in_prompt_batches
from roma_ds.sequences.token_tree import tree_of
from roma_ds.sequences.tree_cache import TreeCache

CPU = torch.device("cpu")


def as_keys(tokens: list[int] | Ids) -> torch.Tensor:
    """[1, 1, n, 1], so that a key says which token it is of."""
    return torch.tensor(tokens, dtype=torch.float32)[None, None, :, None]


def seen_by_each(cache: TreeCache, newest: list[int], window: int | None) -> list[list[int]]:
    """By sequence the tokens that its newest one sees, in any order; the cache takes the newest."""
    own, values, shared = cache.add("module", as_keys(newest), -as_keys(newest))
    assert torch.equal(own, -values)
    found: list[list[int]] = []
    for row, hidden in enumerate(cache.hidden(window, CPU).tolist()):
        tokens = [int(own[row, 0, at, 0]) for at in range(cache.width) if not hidden[cache.depth + at]]
        for run, (keys, _) in zip(cache.runs, shared, strict=True):
            if run.low <= row < run.high:
                there = hidden[run.columns]
                tokens += [int(key) for key, gone in zip(keys[0, :, 0], there, strict=True) if not gone]
        found.append(sorted(tokens))
    return found


@pytest.mark.parametrize("worth", [1, 20, tree_cache.WORTH])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_every_sequence_sees_its_own_tokens_and_those_it_shares(
    window: int | None, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_cache, "WORTH", worth)
    monkeypatch.setattr(tree_cache, "ROOM", 2)
    kept_once = 0
    for seed in range(12):
        prompts, draw = related(seed), random.Random(seed)
        tree = tree_of(prompts)
        cache = TreeCache(tree)
        cache.keep("module", as_keys(tree.ids), -as_keys(tree.ids))
        kept_once += sum((run.stop - run.first) * (run.high - run.low - 1) for run in cache.runs)
        sequences = [list(prompts[number]) for number in cache.order]
        for turn in range(7):
            cache.step()
            newest = [draw.randint(3, 140) for _ in sequences]
            for sequence, token in zip(sequences, newest, strict=True):
                sequence.append(token)
            assert cache.positions.tolist() == [len(sequence) - 1 for sequence in sequences]
            seen = seen_by_each(cache, newest, window)
            assert seen == [sorted(one[-window:] if window else one) for one in sequences]
            if turn in (1, 4):
                rows = sorted(draw.sample(range(len(sequences)), max(1, len(sequences) // 2)))
                cache.stay(rows)
                sequences = [sequences[row] for row in rows]
    assert kept_once > 0


def test_what_those_that_left_had_is_given_back() -> None:
    start = tuple(range(200))
    tree = tree_of([(*start, 1), (*start, 2), (5, 6, 7)])
    cache = TreeCache(tree)
    cache.keep("module", as_keys(tree.ids), as_keys(tree.ids))
    assert [(run.low, run.high, run.depth) for run in cache.runs] == [(0, 2, 0)]
    before = cache.kept_bytes
    last = [cache.order.index(2)]
    cache.stay(last)
    assert not cache.runs and cache.order == [2] and cache.depth == 0
    assert cache.kept_bytes < before / 5


def test_a_shared_beginning_is_kept_once_and_a_short_one_with_each() -> None:
    long, short = tuple(range(100)), tuple(range(20))
    for start, runs in ((long, 1), (short, 0)):
        tree = tree_of([(*start, place) for place in range(100, 104)])
        cache = TreeCache(tree)
        assert len(cache.runs) == runs and cache.width == (1 if runs else len(start) + 1)


def test_prompts_are_in_batches_that_share_and_fit() -> None:
    for seed in range(30):
        prompts, draw = related(seed, 25), random.Random(seed)
        new, room = (
            draw.choice((1, 8, 50)),
            Room(draw.randint(20, 200), draw.randint(50, 900), draw.randint(1, 9)),
        )
        batches = in_prompt_batches(prompts, new, room)
        assert sorted(number for batch in batches for number in batch) == list(range(25))
        for batch in batches:
            tree = tree_of([prompts[number] for number in batch], least=1)
            if len(batch) > 1:
                assert len(batch) <= room.answers
                assert len(tree.ids) <= room.run
                assert len(tree.ids) + len(batch) * new <= room.kept


def test_as_many_answers_go_together_as_a_shared_beginning_leaves_room_for() -> None:
    start = tuple(range(1000))
    prompts = [(*start, *range(place, place + 20)) for place in range(2000, 2400, 20)]
    batches = in_prompt_batches(prompts, 60, Room.of_longest(prompts, 60, 2))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert in_prompt_batches([], 60, Room.of_longest([], 60, 2)) == []
    strangers = [(place,) * 100 for place in range(5)]
    assert [len(one) for one in in_prompt_batches(strangers, 60, Room.of_longest(strangers, 60, 2))] == [
        2,
        2,
        1,
    ]
    same = [start] * 9
    assert len(in_prompt_batches(same, 10, Room.of_longest(same, 10, 4))) == 1
