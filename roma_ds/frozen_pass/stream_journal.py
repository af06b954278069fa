"""How far a streamed pass has come: what a killed one needs to go on behind its last finished layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roma_ds.errors import UserError
from roma_ds.sequences.found import Found
from roma_ds.storage.atomic import make_folder, read_json, write_json, write_npy

STATE, RESULT = "state.json", "found.safetensors"


class StreamJournal:
    """A folder of one rank's pass: the last finished step, routing by layer, and the result at the end."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Takes up the pass of that fingerprint; what another one left is deleted."""
        self.folder, self.fingerprint = folder, fingerprint
        self.steps, self.file = 0, 0
        """Steps that are done, and the number of the file with the hidden states that the next one reads."""
        try:
            state = read_json(folder / STATE)
            if state["fingerprint"] != fingerprint:
                raise UserError("another pass")
            self.steps, self.file = int(state["steps"]), int(state["file"])
        except (UserError, KeyError, TypeError, ValueError):
            self.restart()

    def restart(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.folder)
        self.steps, self.file = 0, 0

    def record(self, steps: int, file: int) -> None:
        """The first `steps` steps are done; what they wrote must be on disk by now."""
        content = {"fingerprint": self.fingerprint, "steps": steps, "file": file}
        write_json(self.folder / STATE, content)
        self.steps, self.file = steps, file

    def routing_path(self, layer: int) -> Path:
        """Where the routing of a layer is."""
        return self.folder / f"routing-{layer:04d}.npy"

    def keep_routing(self, layer: int, values: NDArray[np.float16]) -> None:
        """Routing [sequences, experts] of one layer."""
        write_npy(self.routing_path(layer), values)

    def routing(self, layer: int) -> NDArray[np.float16]:
        """What `keep_routing` kept."""
        values: NDArray[np.float16] = np.load(self.routing_path(layer), allow_pickle=False)
        return values

    def finish(self, found: Found, steps: int) -> None:
        """Keep the result of the whole pass, which has that many steps."""
        found.save(self.folder / RESULT)
        self.record(steps, 0)

    def result(self) -> Found:
        """What `finish` kept. Raises UserError where it is not there."""
        return Found.load(self.folder / RESULT)
