"""Numbers of eight bits with a scale for each tensor, channel, group or block."""

from __future__ import annotations

from math import prod

import torch

from roma_ds.checkpoint.raw_files import RawTensors
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor, Misfit, multiply, rows_of, subtract
from roma_ds.checkpoint.stored.codes import eight_bit_numbers, scales_of
from roma_ds.checkpoint.stored.declared import Declared

FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)
SQUARE = (128, 128)
"""Rows and columns of a block, where nothing is said of them."""


class Scaled(CodedTensor):
    """weight [..., O, I] = (codes - zero point) x scale.

    Codes are float8 or int8 [..., O, I]. The scale holds for the tensor ([1] or []), for each row ([O] or
    [O, 1]) or for blocks of rows and columns ([O/rows, I/columns], rounded up: those at the edges are
    smaller). With dimensions in front, one such scale for each.
    """

    kind = "8 bits with scales"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        codes = raw.place(self.parts["codes"])
        self._scale = next((name for name in ("_scale_inv", "_scale", ".scale") if name in self.parts), "")
        self.need(self._scale or "_scale")
        if codes.dtype not in (*FLOATS, torch.int8):
            raise Misfit(f"has a scale and yet is stored in {codes.dtype}")
        if len(codes.shape) < 2:
            raise Misfit(f"has a scale and the shape {codes.shape}")
        self.shape = codes.shape
        self._grid = self._grid_of(self._shape(raw, self._scale))
        self._block = self._block_of(self._grid, declared)
        if "_zero_point" in self.parts and self._grid_of(self._shape(raw, "_zero_point")) != self._grid:
            raise Misfit("has zero points of another shape than its scales")

    def _grid_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of scales of a matrix; (0, 0) where one holds for all matrices."""
        outer, rows = self.shape[:-2], self.shape[-2]
        if prod(shape) == 1:
            return (0, 0)
        if shape == (*outer, rows):
            return (rows, 1)
        if outer and shape in (outer, (*outer, 1)):
            return (1, 1)
        if len(shape) == len(self.shape) and shape[:-2] == outer:
            return shape[-2], shape[-1]
        raise Misfit(f"has the shape {self.shape}, its scales {shape}, which do not go together")

    def _block_of(self, grid: tuple[int, int], declared: Declared) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        rows, columns = self.shape[-2:]
        if grid in ((0, 0), (1, 1)):
            return rows, columns
        if grid == (rows, 1):
            return 1, columns
        blocks = sorted(declared.blocks) or [SQUARE]
        for block in blocks:
            if (-(-rows // block[0]), -(-columns // block[1])) == grid:
                return block
        if grid[0] == rows and grid[1]:
            try:
                return 1, declared.group_size(columns, grid[1])
            except ValueError as error:
                raise Misfit(str(error)) from error
        said = ", ".join(f"{one} x {other}" for one, other in blocks)
        raise Misfit(
            f"has the shape {self.shape} and {grid[0]} x {grid[1]} scales, which is not blocks of {said}"
        )

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of all matrices, one after the other."""
        values = eight_bit_numbers(rows_of(raw, self.parts["codes"], first, last))
        if "_zero_point" in self.parts:
            subtract(values, self._groups(raw, "_zero_point", first, last), self._block[1])
        return multiply(values, self._groups(raw, self._scale, first, last), self._block[1])

    def _groups(self, raw: RawTensors, name: str, first: int, last: int) -> torch.Tensor:
        """Scales, or zero points, of the groups of some rows: float32, [rows, groups] or [1, 1]."""
        key, (rows, columns) = self.parts[name], self._grid
        stored = raw.place(key)
        integers = stored.dtype == torch.int8
        if self._grid == (0, 0):
            only = raw.read(key).reshape(1, 1)
            return only.float() if integers else scales_of(only)
        high, tall = self.shape[-2], self._block[0]
        # Of the grids of all matrices, one below the other, the rows that are needed.
        at = torch.arange(first, last)
        lines = at // high * rows + at % high // tall
        begin, end = int(lines[0]), int(lines[-1]) + 1
        some = raw.read_flat(key, begin * columns, end * columns).reshape(end - begin, columns)
        found = some.float() if integers else scales_of(some)
        return found[lines - begin]


class ByRow(CodedTensor):
    """weight [O, I] = codes x row's largest value / 127: int8 [O, I] and float [O]."""

    kind = "int8 of bitsandbytes"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        codes = raw.place(self.parts["codes"])
        self.shape = codes.shape
        if codes.dtype != torch.int8 or len(codes.shape) != 2 or self._shape(raw, ".SCB") != codes.shape[:1]:
            raise Misfit(f"is {codes.dtype} {codes.shape} with an SCB of {self._shape(raw, '.SCB')}")
        if ".weight_format" in self.parts and int(raw.read(self.parts[".weight_format"])) != 0:
            raise Misfit("is stored in a weight_format other than row by row")

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of the weight."""
        largest = raw.read_flat(self.parts[".SCB"], first, last).float()
        return rows_of(raw, self.parts["codes"], first, last).float().mul_(largest[:, None]).mul_(1 / 127)
