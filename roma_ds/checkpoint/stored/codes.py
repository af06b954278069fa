"""Codes of few bits to numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FOUR_BIT_FLOATS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1 by code."""
FOUR_BIT_NUMBERS = tuple(float(code) for code in range(16))
LARGEST = 448
"""Of E4M3; where its codes go on to 480, they stand for no number."""
_POWERS = torch.tensor([*(2.0 ** (code - 127) for code in range(255)), float("nan")])


def pairs(
    codes: torch.Tensor,
    values: Sequence[float] | torch.Tensor,
    high_first: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`dtype` [..., 2n] of two codes of four bits in each byte [..., n] of an integer type.

    values: what each of the 16 codes stands for. high_first: the upper half of a byte comes first. dtype:
    float32, or bfloat16 where it has all values.
    """
    table = torch.as_tensor(values, dtype=torch.float32).to(dtype)
    low, high = table.repeat(16), table.repeat_interleave(16)
    both = torch.stack([high, low] if high_first else [low, high], dim=1)
    # Two values as one of twice the width: three times as fast as rows of a table.
    wide = torch.int64 if dtype == torch.float32 else torch.int32
    found = both.view(wide).view(-1).index_select(0, as_bytes(codes).reshape(-1).int())
    return found.view(dtype).reshape(*codes.shape[:-1], -1)


def as_bytes(codes: torch.Tensor) -> torch.Tensor:
    """The bytes of whole numbers, uint8: of wider ones, lowest byte first, the last dimension grows."""
    # Not view: where a dimension is 1, what is contiguous may have any stride there.
    flat = codes.contiguous().as_strided((codes.numel(),), (1,))
    return flat.view(torch.uint8).reshape(*codes.shape[:-1], codes.shape[-1] * codes.itemsize)


def powers(exponents: torch.Tensor) -> torch.Tensor:
    """float32 of exponents of two that are stored in a byte (E8M0, or uint8): 2^(byte - 127), 255 NaN."""
    return _POWERS[as_bytes(exponents).int()]


def scales_of(stored: torch.Tensor) -> torch.Tensor:
    """Stored scales in float32: floats as they are, bytes and E8M0 as exponents of two."""
    bytewise = stored.dtype in (torch.uint8, torch.float8_e8m0fnu)
    return powers(stored) if bytewise else stored.float()


def eight_bit_numbers(codes: torch.Tensor) -> torch.Tensor:
    """float32 of codes of eight bits, float8 or int8, which torch converts one by one."""
    if codes.dtype == torch.float8_e5m2:
        # The upper half of a float16.
        wide = as_bytes(codes).short().bitwise_left_shift_(8)
        return wide.view(torch.float16).float().reshape(codes.shape)
    if codes.dtype != torch.float8_e4m3fn:
        return codes.float()
    # Sign, exponent and mantissa where float16 has them; its exponent counts from 8 lower.
    wide = as_bytes(codes).view(torch.int8).short().bitwise_left_shift_(7).bitwise_and_(-0x4001)
    found = wide.view(torch.float16).float().mul_(256)
    if found.numel() and max(map(abs, map(float, found.aminmax()))) > LARGEST:
        found.masked_fill_(found.abs() > LARGEST, float("nan"))
    return found.reshape(codes.shape)
