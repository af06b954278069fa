from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.backbone.batches import TOKEN_CHOICES, collate, in_batches, routing_positions
from roma_ds.backbone.encoding import Encoded

PAD = 0
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
    batch = collate(group, PAD, tokens)
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(group), max(s.length for s in group))
    assert batch.rows == tuple(sequence.row for sequence in group)
    assert batch.tokens == sum(sequence.length for sequence in group)
    torch.testing.assert_close(batch.routing_weights.sum(dim=1), torch.ones(len(group)))
    for index, sequence in enumerate(group):
        read = [*sequence.prompt, *sequence.continuation][: sequence.length]
        mask = batch.attention_mask[index].bool()
        assert batch.input_ids[index][mask].tolist() == read
        assert mask.tolist() == [place < len(read) for place in range(len(mask))], "padding is on the right"
        assert set(batch.input_ids[index][~mask].tolist()) <= {PAD}
        used = batch.routing_weights[index] > 0
        wanted = routing_positions(len(sequence.prompt), tokens)
        assert batch.routing_positions[index][used].tolist() == wanted, "of the prompt, never of the answer"
        places = batch.answer_sequence == index
        assert batch.answer_ids[places].tolist() == list(sequence.continuation)
        whole = [*sequence.prompt, *sequence.continuation]
        for position, answer in zip(batch.answer_position[places], batch.answer_ids[places], strict=True):
            assert bool(mask[position]), "logits are never read at a pad token"
            assert whole[int(position) + 1] == int(answer), "a position predicts the next token"


@given(sequences(), st.integers(1, 5))
def test_batches_cover_each_sequence_once(group: list[Encoded], size: int) -> None:
    batches = list(in_batches(group, size))
    assert sorted(s.row for batch in batches for s in batch) == [s.row for s in group]
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    lengths = [s.length for batch in batches for s in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert list(in_batches(group[::-1], size)) == batches, "the order of what is given decides nothing"


def test_inputs_are_the_arguments_of_the_forward_pass() -> None:
    from inspect import signature

    from roma_ds.backbone.routed import RoutedLM

    batch = collate([Encoded(0, (1, 2), (3,))], PAD, "last1")
    inputs = batch.inputs(torch.device("cpu"))
    assert list(inputs) == list(signature(RoutedLM.forward).parameters)[1:]
