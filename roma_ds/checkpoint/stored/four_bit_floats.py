"""Floats of four bits (E2M1), two in a byte, with a scale for some neighbours: NVFP4 and MXFP4."""

from __future__ import annotations

from math import prod

import torch

from roma_ds.checkpoint.raw_files import RawTensors
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor, Misfit, multiply, rows_of
from roma_ds.checkpoint.stored.codes import FOUR_BIT_FLOATS, as_bytes, pairs, powers, scales_of
from roma_ds.checkpoint.stored.declared import Declared

GROUPS = {torch.float8_e4m3fn: 16, torch.uint8: 32, torch.float8_e8m0fnu: 32}
"""Neighbours that share a scale, by the type of the scale."""


class FourBitFloats(CodedTensor):
    """weight [..., I] = value of the code x scale.

    Codes are bytes [..., I/2], the lower half of each first; scales float8 [..., I/16] or exponents of two
    [..., I/32]. A further scale of the whole tensor multiplies (`_scale_2`) or divides (`_global_scale`).
    """

    kind = "4-bit floats"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        codes = raw.place(self.parts["codes"])
        self._scale = ".scale" if ".scale" in self.parts else "_scale"
        self.need(self._scale)
        scale = raw.place(self.parts[self._scale])
        if codes.dtype not in (torch.uint8, torch.int8) or scale.dtype not in GROUPS:
            raise Misfit(f"is stored in {codes.dtype} with scales in {scale.dtype}, which is no known format")
        self.shape = (*codes.shape[:-1], 2 * codes.shape[-1])
        self._group = GROUPS[scale.dtype]
        if scale.shape != (*codes.shape[:-1], -(-self.shape[-1] // self._group)):
            raise Misfit(
                f"has {self.shape} values and scales {scale.shape}, not one for {self._group} of a row"
            )
        self._wide = "_scale_2" if "_scale_2" in self.parts else "_global_scale"
        if self._group == 16:
            self.need(self._wide)
        if self._wide in self.parts and prod(self._shape(raw, self._wide)) != 1:
            raise Misfit(f"has {self._shape(raw, self._wide)} scales of the whole tensor, and one is meant")
        if "_zero_point" in self.parts:
            raise Misfit("is stored in 4-bit floats with zero points, which is not read")

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of the weight."""
        scale = scales_of(rows_of(raw, self.parts[self._scale], first, last))
        if self._wide in self.parts:
            wide = raw.read(self.parts[self._wide]).float().reshape(())
            scale = scale * wide if self._wide == "_scale_2" else scale / wide
        values = pairs(rows_of(raw, self.parts["codes"], first, last), FOUR_BIT_FLOATS)
        return multiply(values, scale, self._group)


class ExpertBlocks(CodedTensor):
    """weight [E, I, O] of all experts; stored [E, O, I]: codes [E, O, I/32, 16], exponents [E, O, I/32].

    A byte holds two neighbours of a row of I values, the lower half first. An expert is decoded at once.
    """

    kind = "MXFP4 blocks of experts"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        self.need("_scales")
        codes, scales = raw.place(self.parts["codes"]), raw.place(self.parts["_scales"])
        fits = len(codes.shape) == 4 and codes.shape[3] == 16 and scales.shape == codes.shape[:3]
        if not fits or {codes.dtype, scales.dtype} - {torch.uint8, torch.float8_e8m0fnu}:
            raise Misfit(
                f"is stored as {codes.dtype} {codes.shape} with scales {scales.dtype} {scales.shape}; "
                "uint8 [E, O, G, 16] and [E, O, G] are meant"
            )
        experts, wide, groups, _ = codes.shape
        self.shape = (experts, 32 * groups, wide)
        self.unit = 32 * groups

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of whole experts."""
        _, high, wide = self.shape
        found = torch.empty((last - first) // high, high, wide)
        for expert, values in enumerate(found, first // high):
            # Two dimensions at a time, which torch transposes block by block.
            values.copy_(self.columns(raw, expert * wide, (expert + 1) * wide).t())
        return found.reshape(last - first, wide)

    def columns(
        self, raw: RawTensors, first: int, last: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """[last - first, I] of columns, those of all experts one after the other: as they lie.

        dtype: float32, or bfloat16, which has every code times every power of two that float32 has.
        """
        groups = self.shape[1] // 32
        codes = raw.read_flat(self.parts["codes"], first * groups * 16, last * groups * 16)
        scales = raw.read_flat(self.parts["_scales"], first * groups, last * groups)
        values = pairs(as_bytes(codes).reshape(-1, 16), FOUR_BIT_FLOATS, dtype=dtype)
        return values.mul_(powers(scales).to(dtype)[:, None]).reshape(last - first, -1)
