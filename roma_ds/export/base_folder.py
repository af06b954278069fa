"""The files of a base checkpoint, by what becomes of them when routers are merged into it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.loading import load_config
from roma_ds.checkpoint.raw_files import INDEX, WHOLE
from roma_ds.checkpoint.span import skeleton
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.export.coded_gates import CodedGates, coded_gates
from roma_ds.export.shard import Shard, open_shard
from roma_ds.families import detect, family_of
from roma_ds.storage.atomic import read_json

LEFT_OUT = (".git", ".cache")
"""Folders that say where a checkpoint is from, and are none of it."""
OTHER_FORMATS = (
    *("*.gguf", "*.ggml", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.npz", "*.nemo"),
    *("*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "*.distcp", "*.mlmodel"),
)
"""Names of files that may hold weights, and are not written here."""
NO_WEIGHTS = ("training_args*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "*token*", "*vocab*")
"""Names of files of the same endings that hold none."""


@dataclass(frozen=True)
class BaseFolder:
    """Files by their paths in the folder, with `/`."""

    folder: Path
    placement: Mapping[str, str]
    """Checkpoint key -> file that transformers reads it from."""
    changed: tuple[str, ...]
    """Safetensors files that hold a router, or a part of its codes."""
    unchanged: tuple[str, ...]
    """Other safetensors files."""
    others: tuple[str, ...]
    coded: CodedGates
    """Routers that are stored in codes."""

    def changes(self, shard: Shard, routers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of `routers` that belong in a file: in place of its own, or of its codes."""
        name = shard.path.relative_to(self.folder).as_posix()
        homes = self.coded.homes
        return {
            key: weight
            for key, weight in routers.items()
            if (homes[key] == name if key in homes else key in shard.places)
        }

    @property
    def copies(self) -> tuple[str, ...]:
        """Files with a second copy of a router."""
        return tuple(name for name in self.changed if name not in set(self.placement.values()))


def base_folder(base: Path, routers: Mapping[str, torch.Tensor]) -> BaseFolder:
    """What is in `base`. routers: by checkpoint key.

    Raises UserError where a shard or a tensor in it is missing, where `base` lacks a router, and where it has
    the weights a second time in a way that cannot be changed, which would keep the routers of the base.
    """
    placement = _placement(base)
    coded = coded_gates(base, routers)
    unknown = sorted(key for key in routers if key not in placement and key not in coded.homes)
    if unknown:
        raise UserError(
            f"the router file has {unknown[0]}, which {base} does not have",
            "merge with the base model that the routers were trained on",
        )
    _require_gates(base, routers)
    names = tuple(_files(base))
    weights = [name for name in names if name.endswith(".safetensors")]
    foreign = [name for name in names if _may_hold_weights(name)]
    read = set(placement.values())
    shapes = {tuple(weight.shape) for weight in routers.values()}
    moved = routers.keys() | coded.gone
    held = {name: [key for key in moved if key in open_shard(base / name).places] for name in weights}
    renamed = [
        name
        for name in weights
        if name not in read and not held[name] and _is_copy(base, name, shapes, placement)
    ]
    other = [
        name
        for name in weights
        if name not in read
        and any(key in coded.gone or _differs(base, name, placement[key], key) for key in held[name])
    ]
    if foreign or renamed or other:
        raise _second_copy(base, foreign, renamed, other)
    return BaseFolder(
        base,
        placement,
        changed=tuple(name for name in weights if held[name]),
        unchanged=tuple(name for name in weights if not held[name]),
        others=tuple(name for name in names if name not in held),
        coded=coded,
    )


def _require_gates(base: Path, routers: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError where one of the router file's tensors is no router of the base."""
    model = ModelConfig(path=str(base))
    try:
        family = family_of(load_config(model))
    except UserError:
        # A config that needs code of its own is not read here, and merging needs none.
        return
    pattern = re.escape(family.gate_key).replace(re.escape("{layer}"), "[0-9]+")
    other = [key for key in routers if not re.fullmatch(pattern, key)]
    if other:
        layout = stored_layout(detect(skeleton(model)), CheckpointFiles(model))
        other = sorted(set(other) - {layout.gate_key(layer) for layer in layout.layers})
    if other:
        raise UserError(
            f"the router file has {other[0]}, which is no router of {base}",
            "use a file written by roma-ds train",
        )


def _placement(base: Path) -> dict[str, str]:
    # Where there are both, transformers loads the single file.
    if (base / WHOLE).exists():
        return dict.fromkeys(open_shard(base / WHOLE).places, WHOLE)
    if not (base / INDEX).exists():
        raise UserError(
            f"{base} has neither {WHOLE} nor {INDEX}",
            "give the folder of a safetensors checkpoint, or a .gguf file",
        )
    placement = weight_map(read_json(base / INDEX))
    if placement is None:
        raise UserError(f"{base / INDEX} has no weight_map", "complete the checkpoint")
    held = {shard: open_shard(base / shard).places for shard in sorted(set(placement.values()))}
    lost = [key for key, shard in placement.items() if key not in held[shard]]
    files = CheckpointFiles(ModelConfig(path=str(base))) if lost else None
    for key in lost:
        other = files.tied_twin(key, placement) if files else None
        if other is None or other not in held.get(placement.get(other, ""), ()):
            raise UserError(
                f"{base / INDEX} places {key} in {placement[key]}, which lacks it", "complete the checkpoint"
            )
    return {key: shard for key, shard in placement.items() if key not in lost}


def weight_map(index: Any) -> dict[str, str] | None:
    """Checkpoint key -> file of an index; None where it is none, or names a file outside of its folder."""
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        return None
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found.values())
    return found if inside else None


def _files(base: Path) -> Iterator[str]:
    """Paths of all files, those in subfolders too; links are followed."""
    seen = set()
    for place, folders, files in os.walk(base, followlinks=True):
        # A link to a folder above would go on for ever.
        seen.add(os.path.realpath(place))
        folders[:] = sorted(
            name
            for name in folders
            if name not in LEFT_OUT and os.path.realpath(os.path.join(place, name)) not in seen
        )
        for name in sorted(files):
            path = Path(place, name)
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path} is a link to a file that is not there", "complete the checkpoint")
            if path.is_file():
                yield path.relative_to(base).as_posix()


def _may_hold_weights(name: str) -> bool:
    own = name.rpartition("/")[2].lower()
    known = any(fnmatch(own, pattern) for pattern in OTHER_FORMATS)
    return known and not any(fnmatch(own, pattern) for pattern in NO_WEIGHTS)


def _is_copy(base: Path, name: str, shapes: set[tuple[int, ...]], known: Mapping[str, str]) -> bool:
    """Whether a file seems to hold the network under other names."""
    if name.rpartition("/")[2].startswith("consolidated"):
        return True
    places = open_shard(base / name).places.items()
    return any(
        place.shape in shapes and ("gate." in key or "router." in key) and key not in known
        for key, place in places
    )


def _differs(base: Path, name: str, read: str, key: str) -> bool:
    """Whether a file has other values of a router than the one that is read, but for their rounding."""
    with safe_open(base / name, "pt") as copy, safe_open(base / read, "pt") as own:
        mine, its = own.get_tensor(key), copy.get_tensor(key)
    return mine.shape != its.shape or not torch.allclose(its.float(), mine.float(), rtol=1e-2, atol=1e-6)


def _second_copy(base: Path, foreign: list[str], renamed: list[str], other: list[str]) -> UserError:
    kinds = (
        ("in another format", foreign),
        ("under other names", renamed),
        ("with other values of the routers", other),
    )
    listed = "; ".join(f"{how} in {', '.join(found)}" for how, found in kinds if found)
    return UserError(
        f"{base} has weights a second time, {listed}: they would keep the routers of the base, and some "
        "programs (vLLM, and all that run GGUF) read such files",
        "move them out of the folder, or merge with a copy of it without them",
    )
