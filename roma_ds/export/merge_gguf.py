"""Merge a router file into a GGUF file, as llama.cpp and what is built on it run it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from roma_ds import __version__
from roma_ds.checkpoint.router_file import RouterFile, read_router_file
from roma_ds.errors import EnvironmentFault, UserError
from roma_ds.export.gguf_copy import difference, write_copy
from roma_ds.export.gguf_header import GgufFile
from roma_ds.export.gguf_parts import number_in, parts_of, targets_of
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, sync_folder
from roma_ds.storage.free_disk import free_bytes
from roma_ds.storage.gate_digest import DIGEST, TYPES, gate_digest
from roma_ds.storage.raw_values import bytes_of

PROVENANCE = "roma_ds."
"""What the keys begin with that a merged file has in its metadata."""
_FACTS = ("base_model", "revision", "layers", "method", "config_hash")
_OTHER = "merge with a GGUF file of the base model that the routers were trained on"


class MergedGguf(TypedDict):
    """What was done."""

    routers: int
    tensors: int
    architecture: str
    """As the file names it."""
    kind: str
    """Type of the gates in the file, which they keep: F32, F16 or BF16."""
    compared: str | None
    """Why it was not seen that the gates are those of the base; None where it was."""
    files: list[Path]
    """One, or the parts of a split file."""


@dataclass(frozen=True)
class _Gate:
    """A router's weight: its name, and the number of the part that holds it."""

    part: int
    name: str


def merge_gguf(base: Path, router_file: Path, out: Path, exact: bool = False) -> MergedGguf:
    """Write `out`: `base` with the gates of `router_file`, and where they are from in its metadata.

    Every other byte of metadata and tensors stays. Of a split file any part may be named, and `out` names the
    parts as llama.cpp does. All files appear, the first of them last, or none does; each is read back before.
    exact: refuse gates whose type in the file would round the router file's float32. Raises UserError where
    the file is damaged, or not of the model that the routers were trained on, or `out` is there, and
    EnvironmentFault where the disk has no room for it.
    """
    router = read_router_file(router_file)
    weights = {layer: weight.float() for layer, weight in router.by_layer().items()}
    parts = parts_of(base)
    targets = targets_of(out, len(parts))
    gates = _gates(parts, base, router)
    kinds = {layer: parts[gate.part].tensors[gate.name].kind for layer, gate in gates.items()}
    values = {layer: _rounded(weights[layer], layer, kinds[layer], exact) for layer in weights}
    compared = _refuse_other_gates(parts, base, gates, router)
    replaced: list[dict[str, bytes]] = [{} for _ in parts]
    for layer, weight in values.items():
        replaced[gates[layer].part][gates[layer].name] = bytes(bytes_of(weight.contiguous()))
    facts = {name: router.metadata[name] for name in _FACTS if router.metadata.get(name)}
    facts |= {"version": __version__, "router_sha256": fingerprint.of_file(router_file)}
    entries = {f"{PROVENANCE}{name}": value for name, value in facts.items()}
    _require_room(make_folder(out.parent), parts)
    with _all_or_none(targets) as written:
        for number, part in enumerate(parts):
            more = entries if number == 0 else {}
            write_copy(part, written[number], replaced[number], more)
            wrong = difference(part, written[number], replaced[number], more)
            if wrong is not None:
                raise UserError(
                    f"{wrong} differs after writing {targets[number]}", "check the disk and merge again"
                )
    return MergedGguf(
        routers=len(weights),
        tensors=sum(len(part.tensors) for part in parts),
        architecture=str(parts[0].metadata["general.architecture"]),
        kind=", ".join(sorted(set(kinds.values()))),
        compared=compared,
        files=targets,
    )


def _require_room(folder: Path, parts: Sequence[GgufFile]) -> None:
    needed, free = sum(part.path.stat().st_size for part in parts), free_bytes(folder)
    if needed > free:
        raise EnvironmentFault(
            f"the merged file takes {needed:,} bytes, and {free:,} are free at {folder}",
            "make room there, or choose another --out",
        )


def _numbers(text: str) -> set[int]:
    """Numbers with commas between; none where it is anything else."""
    parts = text.split(",")
    return {int(part) for part in parts} if all(part.isdecimal() for part in parts) else set()


def _gates(parts: Sequence[GgufFile], base: Path, router: RouterFile) -> dict[int, _Gate]:
    """Where the trained gates are, by layer. Raises UserError where the file is none of the same model."""
    metadata = parts[0].metadata
    merged = [key for key in metadata if key.startswith(PROVENANCE)]
    if merged:
        raise UserError(f"{base} has merged routers already: its metadata has {merged[0]}", _OTHER)
    if not isinstance(metadata.get("general.architecture"), str):
        raise UserError(f"{base} names no general.architecture", "give a GGUF file of a language model")
    found = {
        layer: _Gate(number, name) for number, part in enumerate(parts) for layer, name in part.gates.items()
    }
    weights = router.by_layer()
    if not found:
        raise UserError(f"{base} has no router: no tensor is named blk.N.ffn_gate_inp.weight", _OTHER)
    for layer, weight in sorted(weights.items()):
        if layer not in found:
            raise UserError(
                f"the router file has layer {layer}, {base} has routers in {_listed(found)}", _OTHER
            )
        place = parts[found[layer].part].tensors[found[layer].name]
        if place.shape != tuple(weight.shape):
            raise UserError(
                f"{found[layer].name} has shape {place.shape} in {base}, {tuple(weight.shape)} in the router "
                "file",
                _OTHER,
            )
        if place.kind not in TYPES:
            raise UserError(
                f"{found[layer].name} of {base} is quantised, as {place.kind}: a gate is written in "
                f"{', '.join(TYPES)}",
                "quantise the model anew and leave its routers in F32, as the quantiser does by itself",
            )
    _refuse_other_layers(parts[0], base, found, router)
    return {layer: found[layer] for layer in weights}


def _refuse_other_layers(first: GgufFile, base: Path, found: Mapping[int, _Gate], router: RouterFile) -> None:
    """Raises UserError where the base of the router file has other layers."""
    architecture = first.metadata["general.architecture"]
    stated = number_in(first, f"{architecture}.block_count")
    # Blocks behind the last layer predict further tokens. Not every converter keeps them.
    extra = number_in(first, f"{architecture}.nextn_predict_layers") or 0
    depth = max(found) + 1 if stated is None else stated - extra
    known = _numbers(router.metadata.get("base_layers", ""))
    if known and stated is not None and known != {depth}:
        raise UserError(f"{base} has {depth} layers, the base of the router file {max(known)}", _OTHER)
    layers = _numbers(router.metadata.get("moe_layers", "")) or set(found)
    own = {layer for layer in found if layer < depth or layer in layers}
    if own != layers:
        raise UserError(
            f"{base} has routers in {_listed(own)}, the base of the router file in {_listed(layers)}", _OTHER
        )


def _listed(layers: Mapping[int, object] | set[int]) -> str:
    """Layer numbers in words, runs of them by their ends."""
    numbers = sorted(layers)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "layers " + ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _rounded(weight: torch.Tensor, layer: int, kind: str, exact: bool) -> torch.Tensor:
    """The weight in the type that the file has it in."""
    if exact and kind != "F32":
        raise UserError(
            f"the gate of layer {layer} is stored in {kind}, in which float32 is rounded",
            "leave --gate-dtype out, or convert the model anew: converters write gates in F32 by now",
        )
    rounded = weight.to(TYPES[kind])
    if not rounded.isfinite().all():
        raise UserError(
            f"the gate of layer {layer} is stored in {kind}, and has a value too large for it",
            "convert the model anew: converters write gates in F32 by now",
        )
    return rounded


def _refuse_other_gates(
    parts: Sequence[GgufFile], base: Path, gates: Mapping[int, _Gate], router: RouterFile
) -> str | None:
    """Raises UserError where the file's gates are not those of the base; says why that is not known."""
    kinds = {parts[gate.part].tensors[gate.name].kind for gate in gates.values()}
    if len(kinds) != 1:
        return f"the gates are of several types ({', '.join(sorted(kinds))})"
    (kind,) = kinds
    wanted = router.metadata.get(f"{DIGEST}{kind}")
    if wanted is None:
        return "the router file was written without a digest of its base's gates"
    stored = {layer: _read(parts[gate.part], gate.name) for layer, gate in gates.items()}
    if gate_digest(stored, TYPES[kind]) != wanted:
        raise UserError(
            f"{base} has other gates in {_listed(gates)} than the base that the routers were trained on, "
            f"{router.metadata.get('base_model', 'which is not named')}",
            _OTHER,
        )
    return None


def _read(part: GgufFile, name: str) -> torch.Tensor:
    place = part.tensors[name]
    with open(part.path, "rb") as file:
        file.seek(place.start)
        content = bytearray(file.read(place.size))
    return torch.frombuffer(content, dtype=TYPES[place.kind]).reshape(place.shape)


@contextlib.contextmanager
def _all_or_none(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Empty files beside the targets, which take their places on a clean exit: the first one last."""
    written: list[Path] = []
    moved: list[Path] = []
    try:
        for target in targets:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
            os.close(handle)
            written.append(Path(name))
        yield written
        for temporary, target in reversed(list(zip(written, targets, strict=True))):
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
            moved.append(target)
        sync_folder(targets[0].parent)
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
    finally:
        for path in written:
            path.unlink(missing_ok=True)
