"""Routed experts that stay in memory as they are stored: a row of bytes each, decoded one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from roma_ds.checkpoint.raw_files import RawFiles
from roma_ds.checkpoint.stored.coded_tensor import CodedTensor
from roma_ds.checkpoint.stored.codes import as_bytes
from roma_ds.checkpoint.stored.four_bit_floats import ExpertBlocks
from roma_ds.config import ModelConfig

KEPT = "kept_experts"
"""Attribute of a module of fused experts: `KeptExperts` by the name of the parameter."""
ALIGNED = 16
"""Bytes, at a multiple of which each stored tensor of an expert begins."""
DECODED_AT_ONCE = 1 << 19
"""Values: what they take in float32 stays in a processor's cache."""


class Decoder(Protocol):
    """Where weights that are stored in codes are found."""

    @property
    def raw(self) -> RawFiles:
        """The tensors as stored."""

    def find(self, key: str) -> CodedTensor | None:
        """The weight of that key, where it is stored in codes."""


@dataclass(frozen=True)
class _Part:
    """A stored tensor that each expert has one of, the same in type and shape."""

    keys: tuple[str, ...]
    """By expert; a single one where all experts lie in it, one after the other."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Number of its first byte in an expert's row."""
    grain: ClassVar[int] = 1

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _InMemory:
    """The stored tensors of one expert, under the keys of the first one."""

    model: ModelConfig
    parts: dict[str, _Part]
    row: torch.Tensor
    """uint8 [bytes]"""

    def place(self, key: str) -> _Part:
        return self.parts[key]

    def read(self, key: str) -> torch.Tensor:
        return self.read_flat(key, 0, prod(self.parts[key].shape)).reshape(self.parts[key].shape)

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        part = self.parts[key]
        item = part.dtype.itemsize
        return self.row[part.start + start * item : part.start + stop * item].view(part.dtype)


class DecodedRoom:
    """Memory for decoded experts of all layers, given to those that are used first, until it is full."""

    def __init__(self, size: int) -> None:
        """size: bytes."""
        self._left = size

    def take(self, size: int) -> bool:
        """Whether so many bytes were left, which are then taken."""
        if size > self._left:
            return False
        self._left -= size
        return True


class KeptExperts:
    """How the experts of one parameter [E, a, b] lie in memory, uint8 [E, bytes], and what decodes them.

    Values are those that the reader of the format gives from the files: decoded in float32, rounded once.
    """

    def __init__(
        self,
        weights: Sequence[CodedTensor],
        parts: Sequence[_Part],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        raw: RawFiles,
        keys: frozenset[str],
    ) -> None:
        """weights: of the first expert, one below the other. shape, dtype: of the decoded parameter."""
        self.keys = keys
        """Keys of the weights that it is made of."""
        self.shape, self.dtype = shape, dtype
        self._weights = weights
        self._parts = {part.keys[0]: part for part in parts}
        self._raw = raw
        self.bytes = _aligned(parts[-1].start + parts[-1].size)
        """Of an expert."""
        self.room = DecodedRoom(0)
        self._held: dict[int, torch.Tensor] = {}

    @property
    def saved(self) -> int:
        """Bytes by which it is smaller than the decoded parameter."""
        return prod(self.shape) * self.dtype.itemsize - self.shape[0] * self.bytes

    def read(self, expert: int) -> torch.Tensor:
        """uint8 [bytes] of an expert, from the files. Raises UserError where one ends too early."""
        row = torch.zeros(self.bytes, dtype=torch.uint8)
        for part in self._parts.values():
            if len(part.keys) == 1:
                count = prod(part.shape)
                found = self._raw.read_flat(part.keys[0], expert * count, (expert + 1) * count)
            else:
                found = self._raw.read(part.keys[expert])
            row[part.start : part.start + part.size] = as_bytes(found.reshape(-1))
        return row

    def fill(self, flat: torch.Tensor, spans: Sequence[tuple[int, int]]) -> bool:
        """Read what lies in `spans`, (start, stop), of the flattened parameter; whether all is finite.

        Experts that lie there in part are read, and looked at, whole.
        """
        finite = True
        for start, stop in spans:
            for expert in range(start // self.bytes, -(-stop // self.bytes)):
                row, first = self.read(expert), expert * self.bytes
                finite = finite and all(math.isfinite(float(end)) for end in self.decode(row).aminmax())
                low, high = max(start, first), min(stop, first + self.bytes)
                flat[low:high].copy_(row[low - first : high - first])
        return finite

    def put(self, module: nn.Module, name: str, room: DecodedRoom) -> None:
        """Let a parameter of fused experts be of this kind, still without values."""
        self.room = room
        setattr(module, KEPT, {**getattr(module, KEPT, {}), name: self})
        rows = torch.empty(self.shape[0], self.bytes, dtype=torch.uint8, device="meta")
        setattr(module, name, nn.Parameter(rows, requires_grad=False))

    def decode(self, row: torch.Tensor) -> torch.Tensor:
        """[a, b] of an expert's bytes; where columns lie one after the other, a transposed view."""
        memory = _InMemory(self._raw.model, self._parts, row)
        if isinstance(self._weights[0], ExpertBlocks):
            return self._by_columns(self._weights[0], memory)
        found = torch.empty(self.shape[1:], dtype=self.dtype, device=row.device)
        begin = 0
        for weight in self._weights:
            count = prod(weight.shape[:-1])
            step = max(1, DECODED_AT_ONCE // (weight.shape[-1] * weight.unit)) * weight.unit
            for first in range(0, count, step):
                last = min(count, first + step)
                found[begin + first : begin + last] = weight.rows(memory, first, last)
            begin += count
        return found

    def _by_columns(self, weight: ExpertBlocks, memory: _InMemory) -> torch.Tensor:
        high, wide = self.shape[1:]
        found = torch.empty(wide, high, dtype=self.dtype, device=memory.row.device)
        # float16 has not all of them: there they are rounded once, as everywhere.
        exact = self.dtype if self.dtype == torch.bfloat16 else torch.float32
        step = max(1, DECODED_AT_ONCE // high)
        for first in range(0, wide, step):
            last = min(wide, first + step)
            found[first:last] = weight.columns(memory, first, last, exact)
        return found.t()

    def expert(self, rows: torch.Tensor, number: int) -> torch.Tensor:
        """[a, b] of one expert, to be read only. rows: uint8 [E, bytes]."""
        found = self._held.get(number)
        if found is None:
            found = self.decode(rows[number])
            if self.room.take(found.nbytes):
                self._held[number] = found
        return found


def kept_experts(lists: Sequence[Sequence[str]], like: torch.Tensor, decoder: Decoder) -> KeptExperts | None:
    """How a parameter like [E, a, b] can be kept as it is stored; None where it cannot, or nothing is saved.

    lists: keys of the weights that lie one below the other in each expert, each list by expert, or a single
    key of all. It cannot where a weight is in no codes, or those of two experts are not alike.
    """
    if like.ndim != 3:
        return None
    shape, experts = tuple(like.shape), len(like)
    weights: list[CodedTensor] = []
    parts: list[_Part] = []
    start = 0
    for keys in lists:
        every = [decoder.find(key) for key in keys]
        first = every[0]
        stacked = len(keys) == 1 and first is not None and len(first.shape) == 3
        if first is None or not (stacked or (len(keys) == experts and len(first.shape) == 2)):
            return None
        if any(other is None or _form(other) != _form(first) for other in every[1:]):
            return None
        for name, key in first.parts.items():
            place = decoder.raw.place(key)
            others = [decoder.raw.place(one.parts[name]) for one in every if one is not None]
            if any((one.dtype, one.shape) != (place.dtype, place.shape) for one in others):
                return None
            if stacked and (len(place.shape) < 2 or place.shape[0] != experts):
                return None
            named = tuple(one.parts[name] for one in every if one is not None)
            inner = (1, *place.shape[1:]) if stacked else place.shape
            parts.append(_Part(named, place.dtype, inner, start))
            start = _aligned(start + parts[-1].size)
        weight = copy(first)
        weight.shape = (1, *first.shape[1:]) if stacked else first.shape
        weights.append(weight)
    below = sum(prod(weight.shape[:-1]) for weight in weights)
    if any(weight.shape[-1:] != shape[2:] for weight in weights) or below != shape[1]:
        return None
    found = KeptExperts(
        weights, parts, shape, like.dtype, decoder.raw, frozenset(key for keys in lists for key in keys)
    )
    return found if found.saved > 0 else None


def _form(weight: CodedTensor) -> tuple[type, dict[str, object], frozenset[str]]:
    """What two weights have in common that one reader decodes."""
    own = {name: value for name, value in vars(weight).items() if name != "parts"}
    return type(weight), own, frozenset(weight.parts)


def _aligned(start: int) -> int:
    return -(-start // ALIGNED) * ALIGNED


def runs_by_interface(module: Any) -> bool:
    """Whether a module is a layer's fused experts, which transformers runs by an implementation of choice."""
    return hasattr(module, "_is_expert_parallel") and hasattr(module, "is_transposed")


def hidden_weights(network: nn.Module) -> int:
    """By how many the weights of a network are more than the numbers in its parameters."""
    return sum(prod(one.shape) - one.shape[0] * one.bytes for one in kept_in(network).values())


def kept_in(network: nn.Module) -> dict[str, KeptExperts]:
    """What decodes the parameters of a network, or of a part of one, that are kept as they are stored."""
    return {
        f"{path}.{name}": one
        for path, module in network.named_modules()
        for name, one in getattr(module, KEPT, {}).items()
    }
