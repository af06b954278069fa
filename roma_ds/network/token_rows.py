"""Modules that work on each token alone, run on the tokens that count and on no others.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows, H and W widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from roma_ds.families import MoELayout
from roma_ds.network.packed_attention import ROWS_ONLY

Rows = Callable[[], torch.Tensor | None]
"""int64 [n] of the batch at hand, or None for all."""


def present(layer: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer at these paths, with these, but those that it lacks or that are None there."""
    for name in names:
        module: Any = layer
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            yield name, module


def narrow(network: Any, layout: MoELayout, first: int, needed: Rows, every: Rows) -> frozenset[int]:
    """Let modules of each token alone run on what counts; the layers whose router lies in one of them.

    first: the first layer that is there. needed, every: rows of the flattened two dimensions that are read
    after the last layer, and those with a token.
    """
    family, last = layout.family, layout.family.depth(network.config) - 1
    by_rows, routers = family.mixing == "rows", {site.layer: site.module for site in layout.sites}
    inside = set()
    for number in range(first if by_rows else last, last + 1):
        place = f"{family.layers}.{number}"
        layer = network.get_submodule(place)
        for name, module in present(layer, family.row_modules_in(network.config, number)):
            run_on_rows(module, needed if number == last else every)
            if f"{routers.get(number)}.".startswith(f"{place}.{name}."):
                inside.add(number)
    if not by_rows and any(name.startswith(f"{family.attention}.") for name in family.row_modules):
        for _, attention in present(network.get_submodule(f"{family.layers}.{last}"), (family.attention,)):
            setattr(attention, ROWS_ONLY, True)
    return frozenset(inside)


def run_on_rows(module: nn.Module, rows: Rows) -> None:
    """Let a module that takes [.., .., H] and gives [.., .., W] see some rows of the flattened two alone.

    rows: int64 [n], those of the batch at hand, or None for all. The others come out as 0.
    """
    shapes: list[torch.Size] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        chosen = rows()
        if chosen is None:
            return None
        hidden = inputs[0]
        shapes.append(hidden.shape[:2])
        return hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, chosen), *inputs[1:]

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        chosen = rows()
        if chosen is None:
            return None
        # Some blocks give out more beside the hidden states.
        found, *more = output if isinstance(output, tuple) else (output,)
        shape = shapes.pop()
        width = found.shape[-1]
        room = found.new_zeros(1, shape.numel(), width)
        room = room.index_copy(1, chosen, found.reshape(1, -1, width)).reshape(*shape, width)
        return (room, *more) if isinstance(output, tuple) else room

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
