"""Values of tensors as raw bytes of a file, whole whatever one call of the system takes."""

from __future__ import annotations

import os
from typing import Any

import torch


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied; NumPy has no bfloat16."""
    # Not view(-1): of an empty tensor its stride may be 0, and bytes cannot be seen through that.
    content: Any = values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(content)


def write_at(file: int, content: memoryview, place: int) -> None:
    """Write all of `content` from byte `place` of an open file. Raises OSError as the system does."""
    while content:
        count = os.pwrite(file, content, place)
        content, place = content[count:], place + count


def read_at(file: int, into: memoryview, place: int) -> bool:
    """Fill `into` from byte `place` of an open file; False where the file ends before."""
    while into:
        count = os.preadv(file, [into], place)
        if not count:
            return False
        into, place = into[count:], place + count
    return True
