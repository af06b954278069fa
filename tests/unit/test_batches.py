from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.sequences.batches import TOKEN_CHOICES, collate, in_batches, routing_positions
from roma_ds.sequences.encoding import Encoded

TOKENS = st.sampled_from(TOKEN_CHOICES)
IDS = st.integers(1, 99)


@st.composite
def sequences(draw: st.DrawFn, least: int = 1) -> list[Encoded]:
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=least, max_size=7))
    return [
        Encoded(
            row,
            tuple(draw(st.lists(IDS, min_size=p, max_size=p))),
            tuple(draw(st.lists(IDS, min_size=c, max_size=c))),
        )
        for row, (p, c) in enumerate(shapes)
    ]


def test_positions_written_out() -> None:
    wanted = {
        "last1": {1: [0], 2: [1], 3: [2], 6: [5], 7: [6]},
        "last3": {1: [0], 2: [0, 1], 3: [0, 1, 2], 6: [3, 4, 5], 7: [4, 5, 6]},
        "first1": {1: [0], 2: [0], 3: [0], 6: [0], 7: [0]},
        "first3": {1: [0], 2: [0, 1], 3: [0, 1, 2], 6: [0, 1, 2], 7: [0, 1, 2]},
        "middle1": {1: [0], 3: [1], 7: [3]},
        "middle3": {1: [0], 2: [0, 1], 3: [0, 1, 2], 5: [1, 2, 3], 7: [2, 3, 4]},
    }
    assert set(wanted) == set(TOKEN_CHOICES)
    for tokens, by_length in wanted.items():
        for length, positions in by_length.items():
            assert routing_positions(length, tokens) == positions, (tokens, length)


@given(st.integers(1, 200), TOKENS)
def test_positions_are_in_the_prompt_and_consecutive(length: int, tokens: str) -> None:
    positions = routing_positions(length, tokens)
    assert len(positions) == min(int(tokens[-1]), length)
    assert positions == list(range(positions[0], positions[0] + len(positions)))
    before, after = positions[0], length - 1 - positions[-1]
    assert before >= 0
    assert after >= 0
    if tokens.startswith("first"):
        assert before == 0
    elif tokens.startswith("last"):
        assert after == 0
    else:
        assert abs(before - after) <= 1


@given(sequences(), TOKENS)
def test_collated_batches(group: list[Encoded], tokens: str) -> None:
    batch = collate(group, tokens)
    assert batch.tokens == sum(sequence.length for sequence in group), "no padding"
    assert batch.rows == tuple(sequence.row for sequence in group)
    torch.testing.assert_close(batch.routing_weights.sum(dim=1), torch.ones(len(group)))
    start = 0
    for index, sequence in enumerate(group):
        read = [*sequence.prompt, *sequence.continuation][: sequence.length]
        own = slice(start, start + len(read))
        assert batch.input_ids[own].tolist() == read
        assert batch.position_ids[own].tolist() == list(range(len(read)))
        used = batch.routing_weights[index] > 0
        wanted = [start + place for place in routing_positions(len(sequence.prompt), tokens)]
        assert batch.routing_positions[index][used].tolist() == wanted, "of the prompt, never of the answer"
        places = batch.answer_sequence == index
        assert batch.answer_ids[places].tolist() == list(sequence.continuation)
        whole = [*sequence.prompt, *sequence.continuation]
        for position, answer in zip(batch.answer_position[places], batch.answer_ids[places], strict=True):
            assert start <= int(position) < start + len(read), "logits are read at the sequence's own tokens"
            assert whole[int(position) - start + 1] == int(answer), "a position predicts the next token"
        start += len(read)


@given(sequences(), TOKENS)
def test_packing_names_each_token_and_each_needed_row_once(group: list[Encoded], tokens: str) -> None:
    batch = collate(group, tokens)
    packing, longest = batch.packing, max(sequence.length for sequence in group)
    owner = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(packing.lengths))
    assert (packing.slots // longest).tolist() == owner.tolist()
    assert (packing.slots % longest).tolist() == batch.position_ids.tolist()
    needed = {*batch.answer_position.tolist(), *batch.routing_positions.flatten().tolist()}
    assert packing.rows.tolist() == sorted(needed)
    assert packing.row_of[packing.rows].tolist() == list(range(len(needed)))
    assert int((packing.row_of >= 0).sum()) == len(needed)
    assert packing.row_counts == tuple(torch.bincount(owner[packing.rows], minlength=len(group)).tolist())
    assert len(set(packing.row_slots.tolist())) == len(needed)
    flat = packing.row_mask.reshape(-1, longest)
    for row, slot in zip(packing.rows.tolist(), packing.row_slots.tolist(), strict=True):
        position = int(batch.position_ids[row])
        assert flat[slot].tolist() == [place <= position for place in range(longest)]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 5))
def test_batches_cover_each_sequence_once_within_the_budget(lengths: list[int], size: int) -> None:
    batches = in_batches(lengths, size)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    dealt = [lengths[number] for batch in batches for number in batch]
    assert dealt == sorted(lengths, reverse=True)
    assert all(sum(lengths[number] for number in batch) <= size * max(lengths) for batch in batches)
    assert all(size <= len(batch) <= 4 * size for batch in batches[:-1])


def test_inputs_are_the_arguments_of_the_forward_pass() -> None:
    from dataclasses import replace
    from inspect import signature

    from roma_ds.network.routed import RoutedLM

    batch = collate([Encoded(0, (1, 2), (3,))], "last1")
    arguments = set(list(signature(RoutedLM.forward).parameters)[1:])
    cpu = torch.device("cpu")
    assert set(batch.inputs(cpu)) == arguments - {"entering"}
    cached = replace(batch, entering=torch.zeros(2, 4))
    assert set(cached.inputs(cpu)) == arguments
