"""Resume states: routers and optimizer moments in float32, independent of world size and ZeRO stage."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from roma_ds.errors import UserError
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, read_json, write_json

TENSORS = "routers.safetensors"
INDEX = "index."
"""Prefix of the index's tensors there."""
_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class ResumeState:
    """Everything that a run needs to go on after `step` updates, on any number of ranks."""

    step: int
    masters: Mapping[int, torch.Tensor]
    moments: Mapping[str, Mapping[int, torch.Tensor]]
    index: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """S, its routing weights and what waits to be applied, where they follow training."""


def save_state(folder: Path, state: ResumeState, inputs: str, keep: int) -> Path:
    """Write `folder`/step-N whole or not at all, then delete all but the newest `keep` states.

    inputs: fingerprint of what the run is made from; a state of another run is never resumed.
    """
    make_folder(folder)
    for cut_off in folder.glob(".step-*"):
        shutil.rmtree(cut_off)
    temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
    final = folder / f"step-{state.step}"
    try:
        tensors = {f"master.{layer}": value.contiguous() for layer, value in state.masters.items()}
        for name, by_layer in state.moments.items():
            tensors |= {f"{name}.{layer}": value.contiguous() for layer, value in by_layer.items()}
        tensors |= {f"{INDEX}{name}": value.contiguous() for name, value in state.index.items()}
        save_file(tensors, temporary / TENSORS)
        write_json(
            temporary / "state.json",
            {"step": state.step, "inputs": inputs, "sha256": fingerprint.of_file(temporary / TENSORS)},
        )
        with open(temporary / TENSORS, "rb") as handle:
            os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Later steps are left from another run in this folder: kept, they would pass for the newest.
    states = _states(folder)
    kept = [step for step, _ in states if step <= state.step][-keep:]
    for step, other in states:
        if step not in kept:
            shutil.rmtree(other)
    return final


def _states(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else []:
        match = _NAME.search(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def _read(path: Path) -> tuple[ResumeState, str]:
    facts: dict[str, Any] = read_json(path / "state.json")
    if fingerprint.of_file(path / TENSORS) != facts["sha256"]:
        raise UserError(f"{path / TENSORS} does not match its checksum", "delete it")
    if path.name != f"step-{facts['step']}":
        raise UserError(f"{path / 'state.json'} names step {facts['step']}", "delete it")
    parts: dict[str, dict[int, torch.Tensor]] = {}
    index: dict[str, torch.Tensor] = {}
    for key, value in load_file(path / TENSORS).items():
        if key.startswith(INDEX):
            index[key.removeprefix(INDEX)] = value
            continue
        name, layer = key.rsplit(".", 1)
        parts.setdefault(name, {})[int(layer)] = value
    return ResumeState(int(facts["step"]), parts.pop("master"), parts, index), str(facts["inputs"])


def load_newest(folder: Path, inputs: str, say: Callable[[str], None]) -> ResumeState | None:
    """The newest whole state of the run with fingerprint `inputs`; None where there is none.

    A damaged state is reported through `say` and the one before it is tried.
    """
    for step, path in reversed(_states(folder)):
        try:
            state, made_from = _read(path)
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            say(f"state of step {step} is damaged ({str(error).splitlines()[0]}); trying the one before it")
            continue
        if made_from != inputs:
            say(f"state of step {step} belongs to another config, data or global batch; not resumed")
            continue
        return state
    return None
