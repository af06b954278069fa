"""What a decoder layer's call is given of each token: hidden states, in some models more of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

Dimension = tuple[str | int, ...]
"""Config attributes, or numbers, whose product is a dimension."""


@dataclass(frozen=True)
class Carried:
    """An argument of a decoder layer that comes from the layers before it."""

    name: str
    """Of the argument."""
    shape: tuple[Dimension, ...]
    """Dimensions behind batch and tokens."""
    dtype: str | None = None
    """torch's name of the type; None for that of the weights."""
    places: bool = False
    """Whether the values are places of tokens in the same sequence. Where a sequence is short there are fewer
    of them than `shape` says; those of later tokens mean nothing."""
    where: tuple[str, Any] | None = None
    """Config attribute with one entry a layer, and the entry of the layers that read it; None for all."""
    block: str | None = None
    """Config attribute with the layers of a block, where the values are the hidden states that entered each
    block before: the model itself keeps them, for all later layers and for what follows these."""

    def is_read(self, config: Any, layer: int) -> bool:
        """Whether layer `layer` reads what earlier ones gave."""
        if self is HIDDEN or self.name == HIDDEN.name:
            return True
        return layer > 0 and (self.where is None or getattr(config, self.where[0])[layer] == self.where[1])

    def blocks(self, config: Any, layer: int) -> tuple[int, ...]:
        """The layers before `layer` that begin a block."""
        return () if self.block is None else tuple(range(0, layer, int(getattr(config, self.block))))


HIDDEN = Carried("hidden_states", (("hidden_size",),))
"""The hidden states of most models: one vector a token."""

CHOSEN_KEYS = Carried("prev_topk_indices", (("index_topk",),), "int32", True, ("indexer_types", "shared"))
"""Places of the keys that an indexer chose, which layers of type `shared` take from the one before."""


@dataclass(frozen=True)
class Field:
    """One value a token."""

    name: str
    shape: tuple[int, ...]
    """Of one token."""
    dtype: str
    """torch's name of the type."""
    places: bool = False
    """As `Carried.places`."""


@dataclass(frozen=True)
class Entering:
    """What enters one decoder layer of a model, and how it lies in a row of a table, a token a row.

    Hidden states alone are rows of numbers; more than that are rows of bytes, field after field.
    """

    fields: tuple[Field, ...]

    @staticmethod
    def alone(width: int, dtype: str) -> Entering:
        """Hidden states and nothing else; dtype: torch's name."""
        return Entering((Field(HIDDEN.name, (width,), dtype),))

    @property
    def width(self) -> int:
        """Columns of the table."""
        if len(self.fields) == 1:
            return prod(self.fields[0].shape)
        return sum(_bytes(field) for field in self.fields)

    @property
    def dtype(self) -> Any:
        """torch's type of the table."""
        import torch

        return getattr(torch, self.fields[0].dtype) if len(self.fields) == 1 else torch.uint8

    @property
    def token_bytes(self) -> int:
        """Bytes of a token."""
        return sum(_bytes(field) for field in self.fields)

    def pack(self, values: Mapping[str, Any], positions: Any) -> Any:
        """The table [T, width] of values [T, *shape] by name; of places [T, n] n may be less.

        positions: int64 [T], the token's own place in its sequence.
        """
        import torch

        columns = []
        for field in self.fields:
            value = values[field.name]
            if field.places:
                value = _seen(value, positions, *field.shape)
            columns.append(value.to(getattr(torch, field.dtype)).flatten(1))
        if len(columns) == 1:
            return columns[0]
        return torch.cat([column.contiguous().view(torch.uint8) for column in columns], dim=1)

    def unpack(self, table: Any) -> dict[str, Any]:
        """Values [T, *shape] by name."""
        import torch

        if len(self.fields) == 1:
            (field,) = self.fields
            return {field.name: table.reshape(len(table), *field.shape)}
        found = {}
        parts = table.split([_bytes(field) for field in self.fields], dim=1)
        for field, part in zip(self.fields, parts, strict=True):
            # A row is contiguous where it stands, but may not stand where a number of its type can.
            aligned = part.clone(memory_format=torch.contiguous_format)
            typed = aligned.view(getattr(torch, field.dtype))
            found[field.name] = typed.reshape(len(table), *field.shape)
        return found


def entering_of(config: Any, layer: int, dtype: str, carried: tuple[Carried, ...]) -> Entering:
    """What enters `layer` of a model, of all that its layers may carry."""
    return Entering(
        tuple(
            Field(
                one.name,
                (
                    *((len(one.blocks(config, layer)),) if one.block else ()),
                    *(_dimension(config, dimension) for dimension in one.shape),
                ),
                one.dtype or dtype,
                one.places,
            )
            for one in carried
            if one.is_read(config, layer)
        )
    )


def _dimension(config: Any, names: Dimension) -> int:
    return prod(name if isinstance(name, int) else int(getattr(config, name)) for name in names)


def _bytes(field: Field) -> int:
    import torch

    size: int = prod(field.shape) * getattr(torch, field.dtype).itemsize
    return size


def _seen(places: Any, positions: Any, width: int) -> Any:
    """[T, n] -> [T, width]: the token's own place, which it sees, for a later one or where there are fewer.

    What was chosen behind a token was masked, and depends on what else lay in the batch.
    """
    import torch

    own = positions[:, None].to(places.device, places.dtype)
    seen = torch.minimum(places, own)[:, :width]
    return torch.cat([seen, own.expand(-1, width - seen.shape[1])], dim=1)
