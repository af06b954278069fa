"""Weights stored the other way round in whole numbers: GPTQ and AWQ."""

from __future__ import annotations

import torch

from roma_ds.checkpoint.raw_files import RawTensors
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor, Misfit, group_numbers, multiply, subtract
from roma_ds.checkpoint.stored.codes import FOUR_BIT_NUMBERS, as_bytes, pairs
from roma_ds.checkpoint.stored.declared import Declared

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""In AWQ, which four bits of a word each of eight columns has."""


class TransposedIntegers(CodedTensor):
    """weight [O, I], decoded whole; stored [I, O] = (code - zero point) x scale[group of the row].

    GPTQ packs codes down the columns, int32 [I/8, O], zero points along the rows, int32 [groups, O/8], in its
    first version less one; `g_idx` [I] says which group a row is of. AWQ packs both along the rows, in an
    order of its own, int32 [I, O/8]. Scales [groups, O].
    """

    kind = "transposed integers (GPTQ, AWQ)"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        self.need(".scales")
        codes, scales = raw.place(self.parts["codes"]), self._shape(raw, ".scales")
        if codes.dtype != torch.int32 or len(codes.shape) != 2 or len(scales) != 2:
            raise Misfit(f"is stored as {codes.dtype} {codes.shape} with scales {scales}")
        self._groups, wide = scales
        self._by_rows = codes.shape[1] != wide
        if self._by_rows and codes.shape[1] * 8 != wide:
            raise Misfit(
                f"has codes {codes.shape} and scales {scales}, which is neither GPTQ nor AWQ of 4 bits"
            )
        zeros = self._shape(raw, ".qzeros") if ".qzeros" in self.parts else None
        self._bits = 4
        if not self._by_rows:
            self.need(".qzeros")
            if zeros == (self._groups, wide // 4):
                self._bits = 8
        if zeros is not None and zeros != (self._groups, wide * self._bits // 32):
            raise Misfit(
                f"has scales {scales} and zero points {zeros}, which is neither 4 nor 8 bits a value"
            )
        high = codes.shape[0] if self._by_rows else codes.shape[0] * 32 // self._bits
        self.shape, self.unit = (wide, high), wide
        self._lessened = not self._by_rows and not declared.second_version
        if ".g_idx" in self.parts:
            if self._shape(raw, ".g_idx") != (high,):
                raise Misfit(f"has {high} rows and a g_idx of {self._shape(raw, '.g_idx')}")
        else:
            try:
                self._group = declared.group_size(high, self._groups)
            except ValueError as error:
                raise Misfit(str(error)) from error

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """The whole weight."""
        wide, high = self.shape
        words = raw.read(self.parts["codes"])
        if self._by_rows:
            codes = self._ordered(words)
        else:
            codes = self._numbers(words[..., None]).transpose(1, 2).reshape(high, wide)
        weight, zeros = codes.T, self._zero_points(raw).T
        scales = raw.read(self.parts[".scales"]).float().T
        if ".g_idx" in self.parts:
            group = group_numbers(raw, self.parts[".g_idx"], self._groups)
            weight = weight.sub_(zeros[:, group]).mul_(scales[:, group])
        else:
            multiply(subtract(weight, zeros, self._group), scales, self._group)
        return weight[first:last]

    def _zero_points(self, raw: RawTensors) -> torch.Tensor:
        """float32 [groups, O]."""
        if ".qzeros" not in self.parts:
            return torch.full((self._groups, self.shape[0]), 8.0)
        words = raw.read(self.parts[".qzeros"])
        if self._by_rows:
            return self._ordered(words)
        zeros = self._numbers(words)
        return (zeros + 1) % (1 << self._bits) if self._lessened else zeros

    def _numbers(self, words: torch.Tensor) -> torch.Tensor:
        return as_bytes(words).float() if self._bits == 8 else pairs(words, FOUR_BIT_NUMBERS)

    @staticmethod
    def _ordered(words: torch.Tensor) -> torch.Tensor:
        """float32 [n, 8m] of words [n, m] of AWQ."""
        return pairs(words[..., None], FOUR_BIT_NUMBERS)[..., list(ORDER)].flatten(-2)
