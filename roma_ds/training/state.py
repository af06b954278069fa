"""Resume states: routers and optimizer moments in float32, independent of world size and ZeRO stage."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import make_folder, sync_folder, write_bytes
from roma_ds.storage.tensor_file import TensorFile, TensorReader
from roma_ds.training.other_states import put_aside
from roma_ds.training.state_manifest import (
    MANIFEST,
    DamagedState,
    StateFacts,
    manifest_bytes,
    owner_of,
    read_manifest,
    states_in,
)

ROUTERS = "routers.safetensors"
INDEX = "index.safetensors"
Entries = Mapping[str, tuple[Any, tuple[int, ...]]]


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
        """Write the rest, put the state in its place, then delete all of its run but the newest `keep` and
        the best.

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
        write_bytes(self._temporary / MANIFEST, manifest_bytes(facts, files))
        sync_folder(self._temporary)
        final = self.folder / f"step-{facts.step}"
        if final.exists():
            put_aside(final, facts.inputs)
        os.replace(self._temporary, final)
        sync_folder(self.folder)
        _delete_older(self.folder, facts, keep, keep_best)
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


def read_state(path: Path) -> SavedState:
    """The state in `path`, every file compared with its checksum. Raises DamagedState."""
    facts, files = read_manifest(path / MANIFEST)
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
    for step, path in reversed(states_in(folder)):
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


def _best_first(folder: Path, inputs: str, say: Callable[[str], None] | None = None) -> list[int]:
    """Steps of a run's states that know their loss, the smallest first, of equals the later one."""
    found = []
    for step, path in states_in(folder):
        try:
            facts, _ = read_manifest(path / MANIFEST)
        except DamagedState as error:
            if say is not None:
                say(f"state of step {step} is damaged ({error}); whether it is the best cannot be known")
            continue
        if facts.inputs == inputs and facts.loss is not None:
            found.append((facts.loss, -step))
    return [-step for _, step in sorted(found)]


def _delete_older(folder: Path, facts: StateFacts, keep: int, keep_best: bool) -> None:
    own = [(step, path) for step, path in states_in(folder) if owner_of(path) == facts.inputs]
    # A later one is none that this training saved or came from.
    own = [(step, path) for step, path in own if step <= facts.step]
    kept = {step for step, _ in own[-keep:]}
    if keep_best:
        kept |= set(_best_first(folder, facts.inputs)[:1])
    for step, path in own:
        if step not in kept:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a state such that a kill leaves none that looks like one."""
    doomed = Path(tempfile.mkdtemp(prefix=".step-", dir=path.parent))
    os.replace(path, doomed)
    shutil.rmtree(doomed)
