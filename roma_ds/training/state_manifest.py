"""What a resume state says of itself: `state.json`, of which every bit counts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roma_ds.storage import fingerprint

MANIFEST = "state.json"
FORMAT = 2
_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class StateFacts:
    """What a state says of itself."""

    step: int
    """Optimizer steps that are done"""
    updates: int
    """Steps among them that changed the routers: fewer where steps were skipped"""
    inputs: str
    """Fingerprint of what the run is made from: another run's state is never resumed"""
    loss: float | None = None
    """Mean training loss over the steps since the state before, by which the best is kept"""


class DamagedState(Exception):
    """A state that cannot be resumed from; the message names the file and its fault."""


def manifest_bytes(facts: StateFacts, files: Mapping[str, Any]) -> bytes:
    """The content of `state.json`; files: size and checksum of each other file."""
    content = {"format": FORMAT, **asdict(facts), "files": dict(files)}
    content["sha256"] = fingerprint.of_json(content)
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def read_manifest(path: Path) -> tuple[StateFacts, dict[str, Any]]:
    """Facts and files of a state; path: of its `state.json`.

    Raises DamagedState where that is not, to the last bit, what these facts are written as.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedState(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(raw)
        if content["format"] != FORMAT:
            raise DamagedState(f"{path.name} has the format {content['format']}, not {FORMAT}")
        facts = StateFacts(*(content[name] for name in ("step", "updates", "inputs", "loss")))
        files = dict(content["files"])
        whole = manifest_bytes(facts, files) == raw
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedState(f"{path.name} is no record of a state: {error}") from error
    if not whole:
        raise DamagedState(f"{path.name} does not match its checksum")
    return facts, files


def states_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the states in a folder, whole or not, by step."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else []:
        match = _NAME.search(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def owner_of(state: Path) -> str | None:
    """Fingerprint of the run that a state belongs to; None where its manifest is damaged."""
    try:
        return read_manifest(state / MANIFEST)[0].inputs
    except DamagedState:
        return None
