"""Buffers of a network that an engine must leave as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def exact_buffers(module: nn.Module) -> Iterator[None]:
    """Keep float buffers as they are through `deepspeed.initialize`.

    DeepSpeed may cast them to bfloat16 with the weights (`data_types.buffer_dtype`, and older versions below
    ZeRO-3), the rotary frequencies too, and positions would differ from those that the frozen pass saw.
    """
    kept = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    yield
    for name, buffer in module.named_buffers():
        if name in kept:
            buffer.data = kept[name].to(buffer.device)
