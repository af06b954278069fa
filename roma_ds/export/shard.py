"""A safetensors file, read and written piece by piece: a shard may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from roma_ds.errors import UserError
from roma_ds.storage.gate_digest import TYPES
from roma_ds.storage.raw_values import bytes_of
from roma_ds.storage.tensor_header import Place, read_header

PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class Shard:
    """The tensors of a file by key, without their values."""

    path: Path
    metadata: Mapping[str, str]
    places: Mapping[str, Place]

    def pieces(self, file: BinaryIO, key: str) -> Iterator[bytes]:
        """The bytes of a tensor in order; file: `path`, opened. Raises UserError where it ends too early."""
        place = self.places[key]
        file.seek(place.start)
        left = place.size
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise UserError(f"{self.path} ends within {key}", "complete the checkpoint")
            left -= len(piece)
            yield piece


def open_shard(path: Path) -> Shard:
    """Raises UserError when the file is absent, cut or no safetensors file."""
    try:
        return Shard(path, *read_header(path))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}", "complete the checkpoint") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "complete the checkpoint") from error


def rewrite(
    shard: Shard, target: Path, replaced: Mapping[str, torch.Tensor], gone: Collection[str] = ()
) -> None:
    """Write `target`: the tensors of `shard` without those of `gone`, and with those of `replaced`.

    These are in place of its own where it has them, in their types.
    """
    places = _left(shard, gone) | {key: _replacement(weight) for key, weight in replaced.items()}
    # Wide values first, as safetensors itself does: each tensor then starts at a multiple of its width.
    order = sorted(places, key=lambda key: (-places[key].width, key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **shard.metadata}}
    start = 0
    for key in order:
        end = start + places[key].size
        header[key] = {"dtype": places[key].dtype, "shape": places[key].shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as out, open(shard.path, "rb") as source:
        out.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            if key in replaced:
                out.write(_bytes(replaced[key]))
            else:
                out.writelines(shard.pieces(source, key))


def differing(
    old: Shard, new: Shard, replaced: Mapping[str, torch.Tensor], gone: Collection[str] = ()
) -> str | None:
    """The first key whose tensor in `new` is not that of `replaced`, or where there is none, of `old`.

    replaced: of this shard. gone: what `new` is to lack, where it is not replaced.
    """
    keys = _left(old, gone).keys() | replaced.keys()
    if keys != new.places.keys():
        return min(keys ^ new.places.keys())
    with open(old.path, "rb") as before, open(new.path, "rb") as after:
        for key, place in new.places.items():
            wanted = _replacement(replaced[key]) if key in replaced else old.places[key]
            if (place.dtype, place.shape, place.size) != (wanted.dtype, wanted.shape, wanted.size):
                return key
            if key in replaced:
                same = b"".join(new.pieces(after, key)) == _bytes(replaced[key])
            else:
                pairs = zip(old.pieces(before, key), new.pieces(after, key), strict=True)
                same = all(one == other for one, other in pairs)
            if not same:
                return key
    return None


def _left(shard: Shard, gone: Collection[str]) -> dict[str, Place]:
    return {key: place for key, place in shard.places.items() if key not in gone}


def _replacement(weight: torch.Tensor) -> Place:
    name = next(name for name, dtype in TYPES.items() if dtype == weight.dtype)
    return Place(name, tuple(weight.shape), 0, weight.numel() * weight.itemsize)


def _bytes(weight: torch.Tensor) -> bytes:
    return bytes(bytes_of(weight.contiguous()))
