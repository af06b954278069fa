"""Sequences as a tree of token ids, batches cut along it, and who sees whom there."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.sequences.batches import collate, in_batches, read_ids, tokens_run
from roma_ds.sequences.encoding import Encoded
from roma_ds.sequences.shared_attention import Sharing, batched, chunks_of
from roma_ds.sequences.shared_batches import in_shared_batches
from roma_ds.sequences.token_tree import LEAST_SHARED, shared_length, tree_of

Ids = tuple[int, ...]
CPU = torch.device("cpu")


@st.composite
def related(draw: st.DrawFn) -> list[Ids]:
    """Sequences, many of which begin as another one does; equal ones and beginnings of others among them."""
    found: list[Ids] = []
    for _ in range(draw(st.integers(1, 12))):
        base: Ids = ()
        if found and draw(st.booleans()):
            other = draw(st.sampled_from(found))
            base = other[: draw(st.integers(0, len(other)))]
        own = draw(st.lists(st.integers(0, 3), max_size=draw(st.sampled_from((0, 2, 40)))))
        found.append((*base, *own) or (draw(st.integers(0, 3)),))
    return found


def encoded(sequences: list[Ids]) -> list[Encoded]:
    """Each with its last token behind a prompt of the others."""
    return [Encoded(row, ids, (9,)) for row, ids in enumerate(sequences)]


@given(related(), st.sampled_from((1, 2, LEAST_SHARED)))
def test_a_tree_holds_its_sequences(sequences: list[Ids], least: int) -> None:
    tree = tree_of(sequences, least)
    ids = torch.tensor(tree.ids)
    for sequence, leaf in zip(sequences, tree.leaves, strict=True):
        path = tree.path(leaf)
        assert tuple(ids[path].tolist()) == sequence
        assert torch.equal(tree.positions()[path], torch.arange(len(sequence)))
    beginnings = {sequence[:size] for sequence in sequences for size in range(1, len(sequence) + 1)}
    assert len(tree.ids) >= len(beginnings)
    assert least > 1 or len(tree.ids) == len(beginnings), "no token is there twice"
    assert [segment.first for segment in tree.segments] == sorted(one.first for one in tree.segments)
    assert sum(one.stop - one.first for one in tree.segments) == len(tree.ids)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=6))
def test_short_beginnings_alone_leave_sequences_as_they_are(sequences: list[Ids]) -> None:
    distinct = list(dict.fromkeys(sequences))
    tree = tree_of(distinct, least=100)
    assert not tree.is_shared
    assert len(tree.ids) == sum(map(len, distinct))


@given(related(), st.integers(0, 9))
def test_shared_length(sequences: list[Ids], known: int) -> None:
    one, other = sequences[0], sequences[-1]
    expected = next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
    assert shared_length(one, other, min(known, expected)) == expected


@given(related(), st.integers(1, 4))
def test_batches_hold_each_sequence_once_within_their_tokens(sequences: list[Ids], size: int) -> None:
    listed = encoded(sequences)
    batches = in_shared_batches(listed, size)
    assert sorted(number for batch in batches for number in batch) == list(range(len(listed)))
    budget = size * max(len(ids) for ids in sequences)
    for batch in batches:
        assert tokens_run([listed[number] for number in batch], shared=True) <= budget


def test_batches_of_strangers_are_those_of_old() -> None:
    listed = [Encoded(row, tuple(range(row * 50, row * 50 + 5 + row)), (9,)) for row in range(30)]
    assert in_shared_batches(listed, 4) == in_batches([one.length for one in listed], 4)


def test_what_shares_much_lies_in_one_batch_where_it_fits() -> None:
    prompts = [tuple(range(row * 50, row * 50 + 20 + row)) for row in range(6)]
    options = [
        Encoded(row, prompt, (200 + option, 9)) for option in range(3) for row, prompt in enumerate(prompts)
    ]
    batches = in_shared_batches(options, 2)
    for batch in batches:
        rows = [options[number].row for number in batch]
        assert all(rows.count(row) == 3 for row in rows)
    assert len(batches) > 1
    run = [tokens_run([options[number] for number in batch], shared=True) for batch in batches]
    assert run == sorted(run, reverse=True), "memory peaks in the first batch"
    assert sum(run) < sum(one.length for one in options) / 2


@given(related(), st.sampled_from((128, 6, 1)), st.booleans(), st.data())
def test_a_query_sees_its_own_sequence_up_to_itself(
    sequences: list[Ids], whole: int, rows_only: bool, data: st.DataObject
) -> None:
    import roma_ds.sequences.shared_attention as module

    tree = tree_of(sequences, least=1)
    tokens = len(tree.ids)
    before = torch.zeros(tokens, tokens, dtype=torch.bool)
    for number, segment in enumerate(tree.segments):
        path = tree.path(number)
        for place in range(segment.first, segment.stop):
            before[place, path[path <= place]] = True
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1))))
    asked = rows if rows_only else torch.arange(tokens)
    kept = module.WHOLE, module.BESIDE
    module.WHOLE, module.BESIDE = whole, max(1, whole // 2)
    try:
        calls, place = Sharing(tree, rows).calls(rows_only, CPU)
        chunks = chunks_of(tree)
    finally:
        module.WHOLE, module.BESIDE = kept
    assert [chunk.first for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].first, chunks[-1].stop) == (0, tokens)
    seen = []
    for call in calls:
        queries, keys = call.queries.unflatten(0, (call.count, -1)), call.keys.unflatten(0, (call.count, -1))
        mask = call.mask
        if mask is None:
            mask = (
                torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool)
                .tril()
                .expand(call.count, 1, -1, -1)
            )
        found = torch.zeros(call.count, queries.shape[1], tokens, dtype=torch.bool)
        for chunk in range(call.count):
            for query in range(queries.shape[1]):
                visible = keys[chunk][mask[chunk, 0, query]]
                assert len(set(visible.tolist())) == len(visible), "no key counts twice"
                found[chunk, query, visible] = True
        flat = found.flatten(0, 1)
        seen.append(flat if call.real is None else flat[call.real])
        assert torch.equal(call.query_positions.flatten(), tree.positions()[asked[call.queries]])
        assert torch.equal(call.key_positions.flatten(), tree.positions()[call.keys])
    assert torch.equal(torch.cat(seen)[place], before[asked])


@given(related(), st.sampled_from(("last1", "last3", "first1", "middle3")))
def test_a_shared_batch_says_the_same_of_each_sequence(sequences: list[Ids], tokens: str) -> None:
    listed = [Encoded(row, ids, (*ids[-2:], 7)) for row, ids in enumerate(sequences)]
    plain, shared = collate(listed, tokens), collate(listed, tokens, shared=True)
    lengths = [one.length for one in listed]
    assert shared.asked == plain.tokens == sum(lengths)
    assert shared.tokens == tokens_run(listed, shared=True) <= plain.tokens
    for name in ("routing_weights", "answer_sequence", "answer_ids", "rows"):
        one, other = getattr(plain, name), getattr(shared, name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    for places in ("routing_positions", "answer_position"):
        for values in ("input_ids", "position_ids"):
            both = [getattr(one, values)[getattr(one, places)] for one in (plain, shared)]
            assert torch.equal(*both)
    for own, sequence in zip(shared.apart(shared.input_ids, lengths), listed, strict=True):
        assert tuple(own.tolist()) == read_ids(sequence)
    assert torch.equal(shared.joined(plain.input_ids), shared.input_ids)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 90)), max_size=20),
    st.sampled_from((1, 500, 2**22)),
    st.sampled_from((1.0, 1.2, 4.0)),
)
def test_calls_are_padded_no_more_than_they_may(
    sizes: list[tuple[int, int]], area: int, waste: float
) -> None:
    calls = list(batched(sizes, area, waste))
    assert sorted(number for call in calls for number in call) == list(range(len(sizes)))
    for call in calls:
        own = [sizes[number] for number in call]
        padded = len(own) * max(queries for queries, _ in own) * max(keys for _, keys in own)
        assert len(call) == 1 or (padded <= area and padded <= waste * sum(map(math.prod, own)))
