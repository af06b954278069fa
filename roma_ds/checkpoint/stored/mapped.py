"""Codes of four bits that a table maps to values: what bitsandbytes saves."""

from __future__ import annotations

import json
from math import prod

import torch

from roma_ds.checkpoint.raw_files import RawTensors
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor, Misfit
from roma_ds.checkpoint.stored.codes import pairs
from roma_ds.checkpoint.stored.declared import Declared

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


class Mapped(CodedTensor):
    """weight [O, I] = map[code] x largest value of the block, of the flattened weight.

    Bytes [O x I/2, 1], the upper half of each first; `absmax` one for each block, or codes of them, which a
    second map, blocks and an offset decode. A JSON in a tensor says shape and sizes of blocks.
    """

    kind = "4 bits of bitsandbytes"

    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        name = next((one for one in STATES if one in self.parts), None)
        if name is None:
            raise Misfit("is stored without quant_state")
        try:
            state = json.loads(bytes(raw.read(self.parts[name]).tolist()))
            self.shape = tuple(int(size) for size in state["shape"])
            self._block = int(state["blocksize"])
            nested = ".nested_absmax" in self.parts
            self._nested = max(1, int(state["nested_blocksize"])) if nested else 0
            self._offset = float(state["nested_offset"]) if nested else 0.0
        except (ValueError, KeyError, TypeError) as error:
            raise Misfit(f"has a quant_state that cannot be read: {error!r}") from error
        sizes = {".quant_map": 16} | ({".nested_quant_map": 256} if self._nested else {})
        self.need(*sizes)
        for part, count in sizes.items():
            if self._shape(raw, part) != (count,):
                raise Misfit(f"has a {part.lstrip('.')} of {self._shape(raw, part)}, not {count} values")
        size = prod(self.shape)
        lacks = not self.shape or min(self._block, *self.shape) < 1
        if lacks or prod(self._shape(raw, "codes")) != -(-size // 2):
            raise Misfit(f"is said to be {self.shape}, and stored as {self._shape(raw, 'codes')}")
        blocks = -(-size // self._block)
        if self._shape(raw, ".absmax") != (blocks,):
            raise Misfit(f"has {blocks} blocks, its absmax is {self._shape(raw, '.absmax')}")
        if self._nested and self._shape(raw, ".nested_absmax") != (-(-blocks // self._nested),):
            raise Misfit(f"has {blocks} blocks, its nested_absmax is {self._shape(raw, '.nested_absmax')}")

    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """Rows of the weight."""
        start, stop = first * self.shape[-1], last * self.shape[-1]
        values = raw.read(self.parts[".quant_map"])
        codes = raw.read_flat(self.parts["codes"], start // 2, -(-stop // 2))
        found = pairs(codes, values, high_first=True)[start % 2 :][: stop - start]
        begin, end = start // self._block, -(-stop // self._block)
        largest = self._largest(raw, begin, end).repeat_interleave(self._block)
        skipped = start - begin * self._block
        return found.mul_(largest[skipped : skipped + len(found)]).reshape(last - first, -1)

    def _largest(self, raw: RawTensors, begin: int, end: int) -> torch.Tensor:
        """float32 of some blocks."""
        stored = raw.read_flat(self.parts[".absmax"], begin, end)
        if not self._nested:
            return stored.float()
        values = raw.read(self.parts[".nested_quant_map"]).float()[stored.int()]
        outer = raw.read(self.parts[".nested_absmax"]).float()
        return values * outer[torch.arange(begin, end) // self._nested] + self._offset
