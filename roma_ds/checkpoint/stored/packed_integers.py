"""Whole numbers of four or eight bits, packed along the rows of a weight."""

from __future__ import annotations

import torch

from roma_ds.checkpoint.raw_files import RawTensors
from roma_ds.checkpoint.stored.coded_tensor import (
    CodedTensor,
    Misfit,
    group_numbers,
    multiply,
    rows_of,
    subtract,
)
from roma_ds.checkpoint.stored.codes import FOUR_BIT_NUMBERS, as_bytes, pairs
from roma_ds.checkpoint.stored.declared import Declared

_NUMBERS = tuple(number - 8 for number in FOUR_BIT_NUMBERS)


class PackedIntegers(CodedTensor):
    """weight [O, I] = (code - zero point) x scale, of compressed-tensors.

    Codes in int32 [O, I/8] (or I/4 of eight bits), rounded up, the lowest bits first; a code stands for its
    value less 8 (or 128), and so does a zero point. Scales [O, groups]; zero points are packed down the
    columns, int32 [O/8, groups], or absent. `g_idx` [I] says which group a column is of, else neighbours are.
    """

    kind = "packed integers of compressed-tensors"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        self.need("_scale", "_shape")
        codes, scale = raw.place(self.parts["codes"]), self._shape(raw, "_scale")
        shape = tuple(int(size) for size in raw.read(self.parts["_shape"]).reshape(-1))
        if (
            codes.dtype != torch.int32
            or len(codes.shape) != 2
            or len(shape) != 2
            or shape[0] != codes.shape[0]
        ):
            raise Misfit(f"is stored as {codes.dtype} {codes.shape} and said to be {shape}")
        self.shape = shape
        fitting = [bits for bits in (4, 8) if -(-shape[1] * bits // 32) == codes.shape[1]]
        if len(fitting) != 1:
            raise Misfit(f"is {shape} in {codes.shape} words, which is neither 4 nor 8 bits a value")
        self._bits = fitting[0]
        if len(scale) != 2 or scale[0] != shape[0]:
            raise Misfit(f"has the shape {shape}, its scales {scale}, which do not go together")
        self._groups = scale[1]
        if "_g_idx" in self.parts:
            if self._shape(raw, "_g_idx") != shape[1:]:
                raise Misfit(f"has the shape {shape} and a g_idx of {self._shape(raw, '_g_idx')}")
        else:
            try:
                self._group = declared.group_size(shape[1], self._groups)
            except ValueError as error:
                raise Misfit(str(error)) from error
        lines = -(-shape[0] * self._bits // 32)
        if "_zero_point" in self.parts and self._shape(raw, "_zero_point") != (lines, self._groups):
            raise Misfit(
                f"has zero points {self._shape(raw, '_zero_point')}, where {(lines, self._groups)} are meant"
            )

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of the weight."""
        values = self._numbers(rows_of(raw, self.parts["codes"], first, last))[:, : self.shape[1]]
        scale = rows_of(raw, self.parts["_scale"], first, last).float()
        zeros = self._zero_points(raw, first, last) if "_zero_point" in self.parts else None
        if "_g_idx" in self.parts:
            group = group_numbers(raw, self.parts["_g_idx"], self._groups)
            return (values if zeros is None else values - zeros[:, group]) * scale[:, group]
        if zeros is not None:
            subtract(values, zeros, self._group)
        return multiply(values, scale, self._group)

    def _numbers(self, words: torch.Tensor) -> torch.Tensor:
        """float32 of packed words, whose last dimension grows."""
        if self._bits == 8:
            return as_bytes(words).float() - 128
        return pairs(words, _NUMBERS)

    def _zero_points(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """[rows, groups]."""
        step = 32 // self._bits
        begin = first // step
        words = rows_of(raw, self.parts["_zero_point"], begin, -(-last // step))
        return self._numbers(words.T).T[first - begin * step : last - begin * step]
