"""Resume states: routers and optimizer moments in float32, independent of world size and ZeRO stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, sync_folder, write_bytes
from roma_ds.storage.tensor_file import TensorFile, TensorReader

ROUTERS = "routers.safetensors"
INDEX = "index.safetensors"
MANIFEST = "state.json"
FORMAT = 2
_NAME = re.compile(r"step-(\d+)$")
Entries = Mapping[str, tuple[Any, tuple[int, ...]]]


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


class StateWriter:
    """The state after some step on its way to disk: `folder`/step-N is whole or absent.

    The arrays of the routers are given one after the other, in the order of `entries`.
    """

    def __init__(self, folder: Path, entries: Entries) -> None:
        make_folder(folder)
        for cut_off in folder.glob(".step-*"):
            shutil.rmtree(cut_off)
        self.folder = folder
        self._temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
        self._routers = TensorFile(self._temporary / ROUTERS, entries)

    def add(self, key: str, array: NDArray[Any]) -> None:
        """The next array of the routers."""
        self._routers.add(key, array)

    def finish(
        self, facts: StateFacts, index: Mapping[str, NDArray[Any]], keep: int, keep_best: bool
    ) -> Path:
        """Write the rest, put the state in its place, then delete all but the newest `keep` and the best.

        index: S, its routing weights and what waits to be applied, where they follow training.
        """
        files = {}
        with self._routers:
            files[ROUTERS] = self._routers.finish()
        if index:
            entries = {name: (array.dtype, array.shape) for name, array in index.items()}
            with TensorFile(self._temporary / INDEX, entries) as file:
                for name, array in index.items():
                    file.add(name, array)
                files[INDEX] = file.finish()
        write_bytes(self._temporary / MANIFEST, _manifest(facts, files))
        sync_folder(self._temporary)
        final = self.folder / f"step-{facts.step}"
        if final.exists():
            _remove(final)
        os.replace(self._temporary, final)
        sync_folder(self.folder)
        _delete_others(self.folder, facts, keep, keep_best)
        return final

    def abandon(self) -> None:
        """Leave nothing behind, after a failure."""
        self._routers.__exit__(None, None, None)
        shutil.rmtree(self._temporary, ignore_errors=True)


@dataclass(frozen=True)
class SavedState:
    """A whole state on disk, its checksums compared."""

    facts: StateFacts
    path: Path
    routers: TensorReader = field(repr=False)

    def index(self) -> dict[str, NDArray[Any]]:
        """S and what belongs to it; empty where it does not follow training."""
        path = self.path / INDEX
        if not path.exists():
            return {}
        reader = TensorReader(path)
        return {key: reader.read(key) for key in reader.keys}


def _manifest(facts: StateFacts, files: Mapping[str, Any]) -> bytes:
    content = {"format": FORMAT, **asdict(facts), "files": dict(files)}
    content["sha256"] = fingerprint.of_json(content)
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _read_manifest(path: Path) -> tuple[StateFacts, dict[str, Any]]:
    """Facts and files. Every bit counts: what is read must be what these facts are written as."""
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
        whole = _manifest(facts, files) == raw
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedState(f"{path.name} is no record of a state: {error}") from error
    if not whole:
        raise DamagedState(f"{path.name} does not match its checksum")
    return facts, files


def read_state(path: Path) -> SavedState:
    """The state in `path`, every file compared with its checksum. Raises DamagedState."""
    facts, files = _read_manifest(path / MANIFEST)
    if path.name != f"step-{facts.step}":
        raise DamagedState(f"{MANIFEST} names step {facts.step}")
    for name, written in files.items():
        file = path / name
        try:
            size = file.stat().st_size
            if size != written["bytes"]:
                raise DamagedState(f"{name} has {size} bytes, not the {written['bytes']} that were written")
            if fingerprint.of_file(file) != written["sha256"]:
                raise DamagedState(f"{name} does not match its checksum")
        except OSError as error:
            raise DamagedState(f"{name} cannot be read: {error.strerror}") from error
    if ROUTERS not in files:
        raise DamagedState(f"{MANIFEST} does not name {ROUTERS}")
    return SavedState(facts, path, TensorReader(path / ROUTERS))


def load_newest(folder: Path, inputs: str, say: Callable[[str], None]) -> SavedState | None:
    """The newest whole state of the run with fingerprint `inputs`; None where there is none.

    A damaged state is reported through `say` and the one before it is tried.
    """
    damaged = 0
    for step, path in reversed(_states(folder)):
        try:
            state = read_state(path)
        except DamagedState as error:
            say(f"state of step {step} is damaged ({error}); trying the one before it")
            damaged += 1
            continue
        if state.facts.inputs != inputs:
            say(f"state of step {step} belongs to another config, data or global batch; not resumed")
            continue
        return state
    if damaged:
        say(f"no state in {folder} is whole: training starts from the beginning")
    return None


def load_best(folder: Path, inputs: str, say: Callable[[str], None]) -> SavedState | None:
    """The whole state with the smallest loss, a later one of equals; None where there is none.

    A damaged state is reported through `say` and the next best is tried.
    """
    for step in _best_first(folder, inputs, say):
        try:
            return read_state(folder / f"step-{step}")
        except DamagedState as error:
            say(f"state of step {step} is damaged ({error}); trying that of the next smallest loss")
    say(f"no state in {folder} that knows its loss is whole: the routers of the last step are the result")
    return None


def _states(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else []:
        match = _NAME.search(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def _best_first(folder: Path, inputs: str, say: Callable[[str], None] | None = None) -> list[int]:
    """Steps of a run's states that know their loss, the smallest first, of equals the later one."""
    found = []
    for step, path in _states(folder):
        try:
            facts, _ = _read_manifest(path / MANIFEST)
        except DamagedState as error:
            if say is not None:
                say(f"state of step {step} is damaged ({error}); whether it is the best cannot be known")
            continue
        if facts.inputs == inputs and facts.loss is not None:
            found.append((facts.loss, -step))
    return [-step for _, step in sorted(found)]


def _delete_others(folder: Path, facts: StateFacts, keep: int, keep_best: bool) -> None:
    # Later steps are left from another run in this folder: kept, they would pass for the newest.
    states = _states(folder)
    kept = {step for step, _ in states if step <= facts.step}
    kept = set(sorted(kept)[-keep:])
    if keep_best:
        kept |= set(_best_first(folder, facts.inputs)[:1])
    for step, other in states:
        if step not in kept:
            _remove(other)


def _remove(path: Path) -> None:
    """Delete a state such that a kill leaves none that looks like one."""
    doomed = Path(tempfile.mkdtemp(prefix=".step-", dir=path.parent))
    os.replace(path, doomed)
    shutil.rmtree(doomed)
