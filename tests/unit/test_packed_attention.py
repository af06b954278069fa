"""Attention in packed sequences is attention in each alone, padded or one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from roma_ds.network import packed_attention as attention
from roma_ds.sequences.packing import Packing, pack

HEADS, WIDTH = 4, 8
WAYS = (attention.apart, attention.together)


def module_of(groups: int, rows_only: bool) -> nn.Module:
    made = nn.Module()
    made.config = SimpleNamespace()  # type: ignore[assignment]
    made.num_key_value_groups = groups  # type: ignore[assignment]
    made.is_causal = True  # type: ignore[assignment]
    setattr(made, attention.ROWS_ONLY, rows_only)
    return made


def by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[T, h, d], token by token."""
    groups = query.shape[1] // key.shape[1]
    key, value = (item[0].repeat_interleave(groups, dim=0) for item in (key, value))
    rows, start = [], 0
    for length in packing.lengths:
        for own in range(length):
            first = 0 if window is None else max(0, own - window + 1)
            seen = slice(start + first, start + own + 1)
            scores = torch.einsum("hd,hkd->hk", query[0, :, start + own], key[:, seen]) / WIDTH**0.5
            if sinks is not None:
                scores = torch.cat((scores, sinks[:, None]), dim=1)
            shares = torch.softmax(scores, dim=1)[:, : own + 1 - first]
            rows.append(torch.einsum("hk,hkd->hd", shares, value[:, seen]))
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("sinks", [False, True])
@given(data=st.data())
def test_each_token_sees_its_own_sequence(way: Any, sinks: bool, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    window = data.draw(st.none() | st.integers(1, 9))
    rows_only = data.draw(st.booleans())
    ends = torch.tensor(lengths).cumsum(0) - 1
    more = data.draw(st.lists(st.integers(0, sum(lengths) - 1), max_size=4))
    packing = pack(lengths, torch.cat((ends, torch.tensor(more, dtype=torch.long))))
    source = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    query, key, value = (
        torch.randn(1, heads, sum(lengths), WIDTH, generator=source, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, HEADS // groups, HEADS // groups)
    )
    sink = torch.randn(HEADS, generator=source, dtype=torch.float64) if sinks else None
    wanted = by_hand(query, key, value, packing, window, sink)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "apart", way)
        found, _ = attention.packed_attention(
            module_of(groups, rows_only),
            query,
            key,
            value,
            None,
            packing=packing,
            sliding_window=window,
            s_aux=sink,
        )
    read = packing.rows if rows_only else torch.arange(sum(lengths))
    torch.testing.assert_close(found[0, read], wanted[read])
    upward = torch.randn(wanted[read].shape, generator=source, dtype=torch.float64)
    mine = torch.autograd.grad((found[0, read] * upward).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted[read] * upward).sum(), (query, key, value))
    torch.testing.assert_close(mine, theirs)
    if rows_only:
        others = torch.ones(sum(lengths), dtype=torch.bool)
        others[packing.rows] = False
        assert not found[0, others].any()


def both_ways(module: nn.Module, tensors: list[torch.Tensor], packing: Packing) -> list[torch.Tensor]:
    """What attention gives on a CPU, and the gradients of its sum of squares to query, key and value."""
    given_ones = [one.clone().requires_grad_(True) for one in tensors]
    found, _ = attention.packed_attention(module, *given_ones, None, packing=packing)
    return [found.detach(), *torch.autograd.grad(found.square().sum(), given_ones)]


@pytest.mark.parametrize("rows_only", [False, True])
@pytest.mark.parametrize("scores", [1, 2 * HEADS * 7 * 7, attention.SCORES])
def test_a_sequence_gets_the_same_bits_whatever_lies_beside_it(
    rows_only: bool, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of equal length in a row share a call, or parts of them do."""
    monkeypatch.setattr(attention, "SCORES", scores)
    lengths, module = [9, 7, 7, 7, 5, 5, 7], module_of(1, rows_only)
    ends = torch.tensor(lengths).cumsum(0) - 1
    source = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, HEADS, sum(lengths), WIDTH, generator=source) for _ in range(3)]
    found = both_ways(module, tensors, pack(lengths, ends))
    start = 0
    for length in lengths:
        here = slice(start, start + length)
        alone = both_ways(
            module, [one[:, :, here] for one in tensors], pack([length], torch.tensor([length - 1]))
        )
        assert torch.equal(found[0][0, here], alone[0][0])
        for ours, theirs in zip(found[1:], alone[1:], strict=True):
            assert torch.equal(ours[:, :, here], theirs)
        start += length


def test_equal_lengths_in_a_row_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    shapes = []
    stock = sdpa_attention.sdpa_attention_forward

    def counted(module: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        shapes.append((query.shape[0], query.shape[2]))
        return stock(module, query, *rest, **named)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", counted)
    lengths = [9, 7, 7, 7, 5, 5, 7]
    tensors = [torch.randn(1, HEADS, sum(lengths), WIDTH) for _ in range(3)]
    packing = pack(lengths, torch.tensor(lengths).cumsum(0) - 1)
    attention.packed_attention(module_of(1, False), *tensors, None, packing=packing)
    assert shapes == [(1, 9), (3, 7), (2, 5), (1, 7)]
    monkeypatch.setattr(attention, "SCORES", 2 * HEADS * 7 * 7)
    shapes.clear()
    attention.packed_attention(module_of(1, False), *tensors, None, packing=packing)
    assert shapes == [(1, 9), (2, 7), (1, 7), (2, 5), (1, 7)]
