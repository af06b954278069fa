"""Merge a router file into its base checkpoint, so that stock transformers loads the result."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

import torch

from roma_ds.checkpoint.router_file import read_router_file
from roma_ds.errors import UserError
from roma_ds.export.base_folder import BaseFolder, base_folder, weight_map
from roma_ds.export.shard import Shard, differing, open_shard, rewrite
from roma_ds.storage.atomic import make_folder, read_json
from roma_ds.storage.gate_digest import FOR_CODES, TYPES

INDEX_NAMES = "*.safetensors.index*.json"
GateDtype = Literal["float32", "stored"]
"""Type of the routers in a merged checkpoint: the router file's own, or what the base has them in.

Where the base has one in codes, `stored` is bfloat16, what others of its kind are published in.
"""


class Merged(TypedDict):
    """What was done."""

    routers: int
    tensors: int
    """Of the checkpoint that transformers reads."""
    shards_rewritten: int
    """Of its files."""
    copies: list[str]
    """Further files with a second copy of the weights, whose routers were changed too."""
    linked: int
    """Unchanged weight files that are hard links to those of the base."""
    copied: int
    """Unchanged weight files that are copies."""


def _is_shared(folder: Path) -> bool:
    """Whether a folder lies in a cache, whose files others rely on."""
    from huggingface_hub import constants

    place = folder.resolve()
    caches = [os.environ.get("MODELSCOPE_CACHE"), os.environ.get("XDG_CACHE_HOME"), constants.HF_HUB_CACHE]
    if any(cache and place.is_relative_to(Path(cache).expanduser().resolve()) for cache in caches):
        return True
    return any(part == ".cache" or part.startswith("models--") for part in place.parts)


def _link_or_copy(base: Path, name: str, target: Path) -> bool:
    """Whether a link was made: of a file of one's own, in no cache and reached by no link."""
    source = base / name
    own = source.stat().st_uid == os.geteuid() and source.resolve() == base.resolve() / name
    linked = own and not _is_shared(base)
    if linked:
        try:
            os.link(source, target)
        except OSError:
            # Another file system, or one without links.
            linked = False
    if not linked:
        _copy(source, target)
    return linked


def _copy(source: Path, target: Path) -> None:
    shutil.copy2(source, target)
    # Files in a cache are often read-only, and this one is the user's to edit.
    target.chmod(target.stat().st_mode | 0o200)


def _of_shard(
    base: BaseFolder, shard: Shard, routers: Mapping[str, torch.Tensor], gate_dtype: GateDtype | None
) -> dict[str, torch.Tensor]:
    """Those of the routers that a shard is to hold, in the type to write there."""
    found = {}
    for key, weight in base.changes(shard, routers).items():
        in_codes = key in base.coded.homes
        stored = FOR_CODES if in_codes else shard.places[key].dtype
        rounded = gate_dtype == "stored" or (gate_dtype is None and in_codes)
        if rounded and stored not in TYPES:
            raise UserError(
                f"{key} is stored as {stored} in {shard.path.name}, a type that no router is written in",
                "merge with --gate-dtype float32",
            )
        found[key] = weight.to(TYPES[stored]) if rounded else weight
        if not found[key].isfinite().all():
            raise UserError(
                f"{key} is stored as {stored} in {shard.path.name}, and has a value too large for it",
                "merge with --gate-dtype float32",
            )
    return found


def _rewrite(
    base: BaseFolder,
    name: str,
    target: Path,
    routers: Mapping[str, torch.Tensor],
    gate_dtype: GateDtype | None,
) -> None:
    source = base.folder / name
    shard = open_shard(source)
    mine = _of_shard(base, shard, routers, gate_dtype)
    for key, weight in mine.items():
        if key not in base.coded.homes and shard.places[key].shape != weight.shape:
            raise UserError(
                f"{key} has shape {shard.places[key].shape} in {source.name}, "
                f"{tuple(weight.shape)} in the router file",
                "merge with the base model that the routers were trained on",
            )
    rewrite(shard, target, mine, base.coded.gone)


def _verify(
    base: BaseFolder, out: Path, routers: Mapping[str, torch.Tensor], gate_dtype: GateDtype | None
) -> None:
    for name in (*base.changed, *base.unchanged):
        if os.path.samefile(base.folder / name, out / name):
            continue
        old = open_shard(base.folder / name)
        wanted = _of_shard(base, old, routers, gate_dtype)
        key = differing(old, open_shard(out / name), wanted, base.coded.gone)
        if key is not None:
            raise UserError(f"{key} differs after writing {out / name}", "check the disk and merge again")


def _settle_index(path: Path, new: Mapping[str, str]) -> None:
    """Let an index say what is in the files that it names: which tensors, and their size in bytes.

    new: files of tensors that it may not know, by key.
    """
    index = read_json(path)
    placed = weight_map(index)
    if placed is None or not all((path.parent / name).is_file() for name in placed.values()):
        return
    held = {name: open_shard(path.parent / name).places for name in set(placed.values())}
    placed |= {key: name for key, name in new.items() if key in held.get(name, ())}
    index["weight_map"] = {key: name for key, name in placed.items() if key in held[name]}
    metadata = index.get("metadata")
    size = sum(held[name][key].size for key, name in index["weight_map"].items())
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fill(
    base: BaseFolder, out: Path, routers: Mapping[str, torch.Tensor], gate_dtype: GateDtype | None
) -> tuple[int, int]:
    """Numbers of unchanged weight files that were linked and copied."""
    linked = 0
    for name in (*base.changed, *base.unchanged, *base.others):
        source, target = base.folder / name, out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in base.changed:
            _rewrite(base, name, target, routers, gate_dtype)
        elif name in base.unchanged:
            linked += _link_or_copy(base.folder, name, target)
        else:
            _copy(source, target)
    for path in sorted(out.rglob(INDEX_NAMES)):
        _settle_index(path, base.coded.homes)
    base.coded.settle(out)
    return linked, len(base.unchanged) - linked


def merge(base: Path, router_file: Path, out: Path, gate_dtype: GateDtype | None = None) -> Merged:
    """Write `out`: `base` with the routers of `router_file` in place, checked tensor by tensor.

    Subfolders come along, and a second copy of the weights in the same form is changed too. Safetensors files
    without a router are hard-linked where they are the user's own and in no cache, else copied; none is held
    in memory. All other files are copied. `out` appears whole or not at all. gate_dtype: routers are written
    in float32 whatever the base has, as rounding a tuned router could undo small updates; or rounded to the
    type that the base has them in; None: in float32, but for those that the base has in codes. Raises
    UserError when a key or shape does not fit, when weights are there a second time in another form, or `out`
    exists and is not empty or lies in `base`.
    """
    if out.is_file():
        raise UserError(f"{out} exists and is a file", "choose another --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty", "choose another --out")
    if not base.is_dir():
        raise UserError(f"{base} is no folder", "give the local folder of the base checkpoint")
    if out.resolve().is_relative_to(base.resolve()):
        raise UserError(f"{out} lies in {base}, which is merged whole", "choose another --out")
    routers = {key: weight.float() for key, weight in read_router_file(router_file).weights.items()}
    found = base_folder(base, routers)
    make_folder(out.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        linked, copied = _fill(found, temporary, routers, gate_dtype)
        _verify(found, temporary, routers, gate_dtype)
        os.chmod(temporary, 0o755)
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    return Merged(
        routers=len(routers),
        tensors=len(found.placement),
        shards_rewritten=len(found.changed) - len(found.copies),
        copies=list(found.copies),
        linked=linked,
        copied=copied,
    )
