"""The parts of a GGUF model that is split over several files, as llama.cpp names and numbers them."""

from __future__ import annotations

import re
from pathlib import Path

from roma_ds.errors import UserError
from roma_ds.export.gguf_header import GgufFile, read_gguf

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts_of(base: Path) -> list[GgufFile]:
    """All files of a model, the first first, whichever of them `base` is.

    Raises UserError where one is not there, or is no part of it.
    """
    named = read_gguf(base)
    count = number_in(named, "split.count") or 1
    if count <= 1:
        return [named]
    match = _PART.fullmatch(base.name)
    if match is None or int(match[3]) != count:
        raise UserError(
            f"{base} is one of {count} parts, and is not named so",
            f"give it the name that it was written under, as model-00001-of-{count:05d}.gguf",
        )
    paths = [base.with_name(f"{match[1]}-{number + 1:05d}-of-{count:05d}.gguf") for number in range(count)]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise UserError(f"{absent[0]}, a part of {base.name}, is not there", "put all parts into one folder")
    parts = [named if path == base else read_gguf(path) for path in paths]
    for number, part in enumerate(parts):
        found = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if found != (number, count):
            raise UserError(
                f"{part.path} says that it is part {found[0]} of {found[1]}, not {number} of {count}",
                "restore the names that the parts were written under",
            )
    tensors, stated = sum(len(part.tensors) for part in parts), parts[0].metadata.get("split.tensors.count")
    if stated is not None and stated != tensors:
        raise UserError(
            f"the parts of {base.name} hold {tensors} tensors, {stated} belong to it", "fetch all parts anew"
        )
    return parts


def targets_of(out: Path, count: int) -> list[Path]:
    """The files to write for `count` parts. Raises UserError where one is there."""
    if out.suffix != ".gguf":
        raise UserError(f"{out} does not end in .gguf", "name a .gguf file with --out")
    match = _PART.fullmatch(out.name)
    stem = match[1] if match and int(match[3]) == count else out.name.removesuffix(".gguf")
    numbers = range(1, count + 1)
    names = [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in numbers] if count > 1 else [out.name]
    targets = [out.with_name(name) for name in names]
    for target in targets:
        if target.exists():
            raise UserError(f"{target} exists", "choose another --out")
    return targets


def number_in(file: GgufFile, key: str) -> int | None:
    """A whole number of the metadata; None without one."""
    value = file.metadata.get(key)
    return value if type(value) is int else None
