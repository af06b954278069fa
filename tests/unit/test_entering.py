"""A table of what enters a layer gives back what was put in it, whatever the fields are."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.families.entering import HIDDEN, Carried, Entering, Field, entering_of

TYPES = ("float32", "bfloat16", "float16", "int32", "int64", "uint8")


@st.composite
def entering_fields(draw: Any) -> tuple[Field, ...]:
    """Hidden states, and up to three more fields of any type; some are places of tokens."""
    shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
    found = [Field("hidden", draw(shapes), draw(st.sampled_from(("float32", "bfloat16", "float16"))))]
    for number in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            kind = draw(st.sampled_from(("int32", "int64")))
            found.append(Field(f"places{number}", (draw(st.integers(1, 7)),), kind, places=True))
        else:
            found.append(Field(f"more{number}", draw(shapes), draw(st.sampled_from(TYPES))))
    return tuple(found)


def values_of(field: Field, tokens: int, source: torch.Generator) -> torch.Tensor:
    """Any bits of its type, but for places, which lie in a sequence."""
    dtype = getattr(torch, field.dtype)
    if field.places:
        width = int(torch.randint(1, field.shape[0] + 1, (1,), generator=source))
        return torch.randint(0, 40, (tokens, width), generator=source).to(dtype)
    size = tokens * prod(field.shape) * dtype.itemsize
    drawn = torch.randint(0, 256, (size,), generator=source, dtype=torch.uint8)
    return drawn.view(dtype).reshape(tokens, *field.shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN has bits too."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


@given(entering_fields(), st.integers(0, 6), st.integers(0, 2**31))
def test_what_is_packed_comes_out_again(fields: tuple[Field, ...], tokens: int, seed: int) -> None:
    entering, source = Entering(fields), torch.Generator().manual_seed(seed)
    values = {field.name: values_of(field, tokens, source) for field in fields}
    positions = torch.randint(0, 20, (tokens,), generator=source)
    table = entering.pack(values, positions)
    assert table.shape == (tokens, entering.width) and table.dtype == entering.dtype
    assert table.element_size() * entering.width == entering.token_bytes
    found = entering.unpack(table)
    assert list(found) == [field.name for field in fields]
    for field in fields:
        if not field.places:
            assert same_bits(found[field.name], values[field.name])
            continue
        # A place behind the token was masked: the token itself stands there, and where there are fewer.
        given_places, own = values[field.name], positions[:, None].to(values[field.name].dtype)
        width = given_places.shape[1]
        assert same_bits(found[field.name][:, :width], torch.minimum(given_places, own))
        assert bool((found[field.name][:, width:] == own).all())


@given(entering_fields(), st.permutations(range(5)), st.integers(0, 2**31))
def test_rows_may_be_taken_in_any_order(fields: tuple[Field, ...], order: list[int], seed: int) -> None:
    """As a cache does, which gives out sequences; nothing of a token lies in another one's row."""
    entering, source = Entering(fields), torch.Generator().manual_seed(seed)
    values = {field.name: values_of(field, 5, source) for field in fields}
    table = entering.pack(values, torch.arange(5))
    whole, some = entering.unpack(table), entering.unpack(table[order])
    for name in whole:
        assert same_bits(some[name], whole[name][order])


def test_what_a_layer_reads_depends_on_its_number() -> None:
    config = SimpleNamespace(
        hidden_size=4, streams=3, top=2, kinds=["full", "shared", "full", "shared"], in_block=3
    )
    streams = Carried(HIDDEN.name, (("streams",), ("hidden_size",)), "float32")
    places = Carried("places", (("top",),), "int32", True, ("kinds", "shared"))
    blocks = Carried("blocks", (("hidden_size",),), block="in_block")

    def shapes(layer: int) -> dict[str, tuple[int, ...]]:
        entering = entering_of(config, layer, "bfloat16", (streams, places, blocks))
        return {field.name: field.shape for field in entering.fields}

    assert shapes(0) == {HIDDEN.name: (3, 4)}
    assert shapes(1) == {HIDDEN.name: (3, 4), "places": (2,), "blocks": (1, 4)}
    assert shapes(2) == {HIDDEN.name: (3, 4), "blocks": (1, 4)}
    assert shapes(3) == {HIDDEN.name: (3, 4), "places": (2,), "blocks": (1, 4)}
    assert [blocks.blocks(config, layer) for layer in (0, 1, 3, 4, 7)] == [(), (0,), (0,), (0, 3), (0, 3, 6)]


@pytest.mark.parametrize(("width", "dtype"), [(8, "bfloat16"), (3, "float32")])
def test_hidden_states_alone_are_rows_of_numbers(width: int, dtype: str) -> None:
    entering = Entering.alone(width, dtype)
    values = torch.randn(5, width).to(getattr(torch, dtype))
    assert torch.equal(entering.pack({HIDDEN.name: values}, torch.arange(5)), values)
    assert (entering.width, entering.dtype) == (width, values.dtype)
