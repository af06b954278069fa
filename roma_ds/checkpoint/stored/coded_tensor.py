"""What all formats of stored codes have in common: a tensor that is known from headers, decoded by rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import prod
from typing import ClassVar

import torch

from roma_ds.checkpoint.raw_files import PLAIN_COPY, RawTensors
from roma_ds.checkpoint.stored.declared import Declared
from roma_ds.errors import UserError


class Misfit(ValueError):
    """Stored tensors that do not belong together, in words that go on from the name of the weight."""


class CodedTensor(ABC):
    """A weight that is stored in codes, with what decodes them in tensors of their own.

    Shapes: `shape` is that of the weight, whose last dimension is a row.
    """

    dtype: ClassVar[torch.dtype] = torch.float32
    kind: ClassVar[str]
    """What the format is called."""
    unit: int = 1
    """Rows that are decoded together."""
    shape: tuple[int, ...]

    def __init__(self, parts: Mapping[str, str], raw: RawTensors, declared: Declared) -> None:
        """parts: keys of the stored tensors by what they are. Raises Misfit where they do not fit.

        Only headers are read, and the few bytes of a tensor that says a shape.
        """
        self.parts = dict(parts)
        self._settle(raw, declared)

    @abstractmethod
    def _settle(self, raw: RawTensors, declared: Declared) -> None:
        """Set `shape` and all else that decoding needs."""

    @abstractmethod
    def rows(self, raw: RawTensors, first: int, last: int) -> torch.Tensor:
        """float32 [last - first, row], of rows that are whole units."""

    @property
    def grain(self) -> int:
        """Values that are decoded together at least."""
        return max(1, self.unit * self.shape[-1])

    def flat(self, raw: RawTensors, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` - 1 of the flattened weight, float32."""
        if start >= stop:
            return torch.empty(0)
        row, count = self.shape[-1], prod(self.shape[:-1])
        first = start // row // self.unit * self.unit
        last = min(count, -(-stop // (row * self.unit)) * self.unit)
        found = self.rows(raw, first, last).reshape(-1)
        return found[start - first * row : stop - first * row]

    def need(self, *names: str) -> None:
        """Raises Misfit that names the first of these parts that the files lack."""
        for name in names:
            if name not in self.parts:
                raise Misfit(f"is stored without {name.lstrip('._')}")

    def _shape(self, raw: RawTensors, name: str) -> tuple[int, ...]:
        return raw.place(self.parts[name]).shape


def rows_of(raw: RawTensors, key: str, first: int, last: int) -> torch.Tensor:
    """Rows `first` to `last` - 1 of a stored tensor, whose last dimension is a row, in its type: [n, row]."""
    row = raw.place(key).shape[-1]
    return raw.read_flat(key, first * row, last * row).reshape(last - first, row)


def group_numbers(raw: RawTensors, key: str, groups: int) -> torch.Tensor:
    """int64 of a stored tensor that says which of the groups each column or row is of.

    Raises UserError where there is none of that number.
    """
    found = raw.read(key).long()
    if found.numel() and not -groups <= int(found.min()) <= int(found.max()) < groups:
        raise UserError(
            f"model.path: {key} of {raw.model.path} names group {int(found.max())} of {groups}", PLAIN_COPY
        )
    return found


def grouped(
    values: torch.Tensor, groups: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of `values` [n, width], to be changed in place, each with what is to be broadcast over it.

    groups [n, m]: each holds for `size` neighbours, the last for as many as are left, a single one for all.
    """
    if groups.shape[1] == 1:
        yield values, groups
        return
    whole = values.shape[1] // size
    if whole:
        yield values[:, : whole * size].unflatten(1, (whole, size)), groups[:, :whole, None]
    if whole * size < values.shape[1]:
        yield values[:, whole * size :], groups[:, whole:]


def multiply(values: torch.Tensor, groups: torch.Tensor, size: int) -> torch.Tensor:
    """`values` [n, width], which are changed, times what holds for their groups."""
    for part, factor in grouped(values, groups, size):
        part.mul_(factor)
    return values


def subtract(values: torch.Tensor, groups: torch.Tensor, size: int) -> torch.Tensor:
    """`values` [n, width], which are changed, less what holds for their groups."""
    for part, less in grouped(values, groups, size):
        part.sub_(less)
    return values
