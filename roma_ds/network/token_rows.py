"""Modules that work on each token alone, run on the tokens that count and on no others.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows, H and W widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def present(layer: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer at these paths, with these, but those that it lacks or that are None there."""
    for name in names:
        module: Any = layer
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            yield name, module


def run_on_rows(module: nn.Module, rows: Callable[[], torch.Tensor | None]) -> None:
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
