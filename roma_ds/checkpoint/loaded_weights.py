"""Gates and some experts in memory, held against the files that they came from.

The files' keys are the family's own, not those of the rules that conversion applied, so that a wrong rule
shows, and so does a wrong cut over the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.expert_keys import expert_keys, stack_shape
from roma_ds.checkpoint.stored.kept_experts import kept_in
from roma_ds.checkpoint.stored.refusals import not_finite
from roma_ds.comm import World
from roma_ds.errors import RomaError
from roma_ds.families import MoELayout, RouterSite

LAYERS = 4
"""In which an expert is compared."""


@dataclass(frozen=True)
class _Held:
    """Flat values of a parameter that are in this process."""

    values: torch.Tensor
    start: int
    """Number of the first one in the whole parameter."""
    shape: tuple[int, ...]
    """Of the whole parameter."""

    @staticmethod
    def of(parameter: Any, rank: int) -> _Held | None:
        """Of a parameter, partitioned by ZeRO-3 or not; None where its share is not in memory as it is."""
        share = getattr(parameter, "ds_tensor", None)
        if share is None:
            return _Held(parameter.detach().reshape(-1), 0, tuple(parameter.shape))
        if share.final_location is not None or share.dtype != parameter.dtype:
            return None
        # What pads the last shares is memory as it was found.
        start, size = rank * share.ds_numel, prod(parameter.ds_shape)
        return _Held(share.detach()[: max(0, size - start)], start, tuple(parameter.ds_shape))

    def has(self, stored: torch.Tensor, first: int) -> bool:
        """Whether flat `stored` is what begins at number `first` of the parameter, as far as it is here."""
        size = prod(self.shape)
        low, high = max(first, self.start), min(first + len(stored), self.start + len(self.values), size)
        if low >= high:
            return True
        mine = self.values[low - self.start : high - self.start].cpu()
        return torch.equal(mine, stored[low - first : high - first].to(mine.dtype))


def check_loaded(network: Any, layout: MoELayout, files: CheckpointFiles, world: World) -> None:
    """Compare every gate, and an expert in some layers, with the stored tensors; of a rank's share at ZeRO-3.

    layout: of `network`. No collective. Raises RomaError that
    names a tensor whose values are not where they belong.
    """
    for site in layout.sites:
        key = layout.gate_key(site.layer)
        gate = _Held.of(network.get_parameter(f"{site.product}.weight"), world.rank)
        if key in files.keys and gate is not None and not gate.has(files.read(key).reshape(-1), 0):
            raise _misplaced(key, files)
    for site in layout.sites[:: max(1, len(layout.sites) // LAYERS)]:
        for key, stored, fused, expert in _sampled(network, layout, site, files, world):
            # As it is, transposed, or with the rows of gate and up by turns.
            ways = (
                stored.reshape(-1),
                stored.T.reshape(-1),
                torch.cat([stored[::2], stored[1::2]]).reshape(-1),
            )
            if not any(_somewhere(held, way, expert) for held in fused for way in ways):
                raise _misplaced(key, files)


def refuse_not_finite(network: Any, rank: int) -> None:
    """Look at all weights that are in this process, of a rank's share at ZeRO-3. No collective.

    Raises UserError that names the parameters with a value that is not finite: an expert may be asked late,
    and its NaN come hours later.
    """
    bad = []
    for name, parameter in network.named_parameters():
        held = _Held.of(parameter, rank)
        if held is None or not held.values.numel() or not held.values.is_floating_point():
            continue
        # No more memory than for two numbers, unlike a mask.
        if not all(math.isfinite(float(end)) for end in held.values.aminmax()):
            bad.append(name)
    if bad:
        raise not_finite(bad)


def _sampled(
    network: Any, layout: MoELayout, site: RouterSite, files: CheckpointFiles, world: World
) -> Iterator[tuple[str, torch.Tensor, list[_Held], int]]:
    """(key of a stored tensor, its values for one expert, where they may lie, number of that expert).

    The first expert that lies whole in this rank's share. Of experts that are kept as they are stored, their
    bytes.
    """
    expert = min(layout.networks - 1, -(-layout.networks * world.rank // world.size))
    fused = []
    layer = network.get_submodule(f"{layout.family.layers}.{site.layer}")
    kept = kept_in(layer)
    as_stored = {key for one in kept.values() for key in one.keys}
    for name, parameter in layer.named_parameters():
        held = _Held.of(parameter, world.rank)
        if name in kept:
            if held is not None:
                yield min(kept[name].keys), kept[name].read(expert)[None], [held], expert
            continue
        shape = None if held is None else stack_shape(name, held.shape, layout)
        if held is not None and shape is not None:
            fused.append(replace(held, shape=shape))
    for key in expert_keys(files, layout, site.layer) if fused else ():
        if key in as_stored:
            continue
        shape = stack_shape(key, files.place(key).shape, layout)
        if shape is not None:
            # All experts in one tensor, as in memory.
            block = prod(shape[1:])
            part = files.read_flat(key, expert * block, (expert + 1) * block)
            yield key, part.view(shape[1:]), fused, expert
        elif f".experts.{expert}." in key and len(files.place(key).shape) == 2:
            yield key, files.read(key), fused, expert


def _somewhere(held: _Held, stored: torch.Tensor, expert: int) -> bool:
    """Whether `stored` is one of the parts that a fused parameter has of an expert."""
    block = prod(held.shape[1:])
    parts = block // len(stored) if len(stored) else 0
    return any(held.has(stored, expert * block + part * len(stored)) for part in range(parts))


def _misplaced(key: str, files: CheckpointFiles) -> RomaError:
    return RomaError(
        f"what was loaded of {files.model.path} is not what its files hold: {key} is not where it belongs",
        "this is a fault of the program or of the memory: run again, and report it if it stays",
    )
