"""Merge a router file into its base checkpoint, so that stock transformers loads the result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.errors import UserError
from roma_ds.export.shard import differing, open_shard, rewrite
from roma_ds.storage.atomic import make_folder, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _shards(base: Path) -> dict[str, str]:
    """Checkpoint key -> shard file name. Raises UserError when a shard or a tensor in it is missing."""
    # Where there are both, transformers loads the single file.
    if (base / SINGLE).exists():
        return dict.fromkeys(open_shard(base / SINGLE).places, SINGLE)
    if not (base / INDEX).exists():
        raise UserError(
            f"{base} has neither {SINGLE} nor {INDEX}", "give the folder of a safetensors checkpoint"
        )
    index = read_json(base / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise UserError(f"{base / INDEX} has no weight_map", "complete the checkpoint")
    placement: dict[str, str] = index["weight_map"]
    held = {shard: open_shard(base / shard).places for shard in sorted(set(placement.values()))}
    for key, shard in placement.items():
        if key not in held[shard]:
            raise UserError(
                f"{base / INDEX} places {key} in {shard}, which lacks it", "complete the checkpoint"
            )
    return placement


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _rewrite(source: Path, target: Path, routers: Mapping[str, torch.Tensor]) -> None:
    shard = open_shard(source)
    mine = {key: weight for key, weight in routers.items() if key in shard.places}
    for key, weight in mine.items():
        if shard.places[key].shape != weight.shape:
            raise UserError(
                f"{key} has shape {shard.places[key].shape} in {source.name}, "
                f"{tuple(weight.shape)} in the router file",
                "merge with the base model that the routers were trained on",
            )
    # Kept in float32: rounding a tuned router to bfloat16 could undo small updates.
    rewrite(shard, target, mine)


def _verify(base: Path, out: Path, placement: Mapping[str, str], routers: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(set(placement.values())):
        if os.path.samefile(base / name, out / name):
            continue
        key = differing(open_shard(base / name), open_shard(out / name), routers)
        if key is not None:
            raise UserError(f"{key} differs after writing {out / name}", "check the disk and merge again")


def merge(base: Path, router_file: Path, out: Path) -> dict[str, int]:
    """Write `out`: `base` with the routers of `router_file` in place, checked tensor by tensor.

    Shards without a router are hard-linked where the file system allows, else copied; none is held in
    memory. `out` appears whole or not at all. Raises UserError when a key or shape does not fit, or `out`
    exists and is not empty.
    """
    if out.is_file():
        raise UserError(f"{out} exists and is a file", "choose another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty", "choose another --out")
    if not base.is_dir():
        raise UserError(f"{base} is no folder", "give the local folder of the base checkpoint")
    routers = {key: weight.float() for key, weight in read_router_file(router_file).weights.items()}
    placement = _shards(base)
    unknown = sorted(key for key in routers if key not in placement)
    if unknown:
        raise UserError(
            f"{router_file} has {unknown[0]}, which {base} does not have",
            "merge with the base model that the routers were trained on",
        )
    make_folder(out.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        touched = {placement[key] for key in routers}
        for source in sorted(base.iterdir()):
            if not source.is_file():
                continue
            if source.name in touched:
                _rewrite(source, temporary / source.name, routers)
            else:
                _link_or_copy(source, temporary / source.name)
        _verify(base, temporary, placement, routers)
        os.chmod(temporary, 0o755)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    return {"routers": len(routers), "tensors": len(placement), "shards_rewritten": len(touched)}
