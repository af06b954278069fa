"""The resume states of one training, saved and read by all its ranks together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.storage.free_disk import free_bytes, require_room
from roma_ds.training.engine import MASTER, RouterEngine
from roma_ds.training.other_states import put_damaged_aside, take_over
from roma_ds.training.state import SavedState, StateWriter, load_best, load_newest
from roma_ds.training.state_manifest import StateFacts, owner_of, states_in
from roma_ds.training.targets import Targets

GIB = 1 << 30


class Checkpoints:
    """Saves and restores an engine and its targets in `folder`. Its methods are collectives."""

    def __init__(
        self,
        world: World,
        run: RunConfig,
        engine: RouterEngine,
        targets: Targets,
        folder: Path,
        inputs: str,
        say: Callable[[str], None],
    ) -> None:
        """inputs: fingerprint of what the run is made from, under which states are valid."""
        self.world = world
        self.run = run
        self.engine = engine
        self.targets = targets
        self.folder = folder
        self.inputs = inputs
        self.say = say
        self._sums = [0.0, 0.0]

    def observe(self, loss: float, samples: int) -> None:
        """Count one step's summed loss of this rank's samples, for the mean by which the best is kept."""
        self._sums[0] += loss
        self._sums[1] += samples

    def resume(self) -> int:
        """Go on from the newest whole state; the steps that are done, 0 without one.

        States of other runs and damaged ones are put aside.
        """
        found = None
        with agreement(self.world):
            if self.world.is_first:
                take_over(self.folder, self.inputs, self.say)
                found = load_newest(self.folder, self.inputs, self.say)
                last = found.facts.step if found is not None else 0
                put_damaged_aside(self.folder, self.inputs, last, self.say)
        facts: StateFacts | None = self.world.from_first(found.facts if found is not None else None)
        if facts is None:
            return 0
        self.engine.restore(self._reader(found), facts.updates)
        index = self.world.from_first(found.index() if found is not None else None)
        self.targets.restore({name: torch.from_numpy(array) for name, array in index.items()})
        return facts.step

    def save(self, done: int) -> None:
        """Write the state after `done` steps. On a full disk all ranks raise, and older states are kept."""
        loss, samples = self.world.reduce(torch.tensor(self._sums, dtype=torch.float64)).tolist()
        self._sums = [0.0, 0.0]
        index = {name: tensor.numpy() for name, tensor in self.targets.state().items()}
        writer, failure = None, None
        with agreement(self.world):
            if self.world.is_first:
                needed = self.bytes() + sum(array.nbytes for array in index.values())
                require_room(self.folder, needed, 0, "a resume state")
                writer = StateWriter(self.folder, self.engine.state_entries())
        for name, array in self.engine.state_arrays():
            try:
                if writer is not None and failure is None and array is not None:
                    writer.add(name, array)
            except OSError as error:
                # The others are on their way through the same exchanges: they are told at the end.
                failure = error
        facts = StateFacts(done, self.engine.updates, self.inputs, loss / samples if samples else None)
        train = self.run.train
        with agreement(self.world):
            try:
                if failure is not None:
                    raise failure
                if writer is not None:
                    writer.finish(facts, index, train.keep_states, train.keep_best)
            finally:
                if writer is not None:
                    writer.abandon()

    def best(self) -> dict[int, torch.Tensor] | None:
        """Routers with the smallest loss, float32 [experts, hidden] by layer; None where no state has one."""
        found = load_best(self.folder, self.inputs, self.say) if self.world.is_first else None
        facts: StateFacts | None = self.world.from_first(found.facts if found is not None else None)
        if facts is None:
            return None
        self.say(f"routers of step {facts.step}, whose mean loss {facts.loss:.4f} is the smallest")
        read = self._reader(found)
        return {layer: torch.from_numpy(read(f"{MASTER}.{layer}")) for layer in self.engine.layers}

    def bytes(self) -> int:
        """What the routers of a state take on disk, about."""
        values = 3 * self.engine.trainable_parameters
        return 4 * values + (1 << 20)

    def is_short_of_disk(self) -> bool:
        """Whether less than guards.free_disk is free, or less than one more state takes. No collective."""
        reserve = max(int(self.run.guards.free_disk * GIB), self.bytes() if self.run.guards.free_disk else 0)
        return self.world.is_first and free_bytes(self.folder) < reserve

    def require_room(self) -> None:
        """Raise EnvironmentFault on all ranks where the disk has no room for the states of this training."""
        with agreement(self.world):
            if self.world.is_first:
                # One more than is kept, since the new one is whole before an old one is deleted.
                kept = self.run.train.keep_states + self.run.train.keep_best + 1
                there = sum(owner_of(path) == self.inputs for _, path in states_in(self.folder))
                lacking = max(1, kept - there)
                reserve = int(self.run.guards.free_disk * GIB)
                what = f"training, for {lacking} resume states,"
                require_room(self.folder, lacking * self.bytes(), reserve, what)

    def _reader(self, found: SavedState | None) -> Callable[[str], NDArray[np.float32]]:
        """Gives an array of rank 0's state on every rank."""

        def read(name: str) -> NDArray[np.float32]:
            array: NDArray[np.float32] = self.world.from_first(
                found.routers.read(name) if found is not None else None
            )
            return array

        return read
