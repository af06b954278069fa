"""What the stages of one process share: ranks, config, and the frozen model while it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roma_ds.backbone.frozen import FrozenModel
from roma_ds.backbone.loading import check_files, checkpoint, load_config, load_tokenizer
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.families import family_of
from roma_ds.pipeline.folders import Folders
from roma_ds.storage import fingerprint
from roma_ds.storage.stage import StageRecord
from roma_ds.training.interruption import Interruption


class Session:
    """One process of a run. Its methods are collectives."""

    def __init__(
        self, world: World, run: RunConfig, ds: Mapping[str, Any], interruption: Interruption
    ) -> None:
        self.world = world
        self.run = run
        self.ds = ds
        self.interruption = interruption
        self.folders = Folders(Path(run.output_dir))
        self._frozen: FrozenModel | None = None
        with agreement(world):
            model_config = load_config(run.model)
            self.family = family_of(model_config)
            self.tokenizer = load_tokenizer(run.model)
            check_files(run.model)
        commit = getattr(model_config, "_commit_hash", None)
        location = Path(checkpoint(run.model))
        self.model_hash: str = world.from_first(
            fingerprint.of_folder(location)
            if location.is_dir()
            else fingerprint.of_json([str(location), commit])
        )

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.world.is_first:
            print(text, flush=True)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """What identifies the network in a stage's inputs."""
        return {"model": self.model_hash, "dtype": self.run.model.dtype}

    def frozen(self) -> FrozenModel:
        """The pretrained network, loaded when it is first asked for."""
        if self._frozen is None:
            self._frozen = FrozenModel(self.world, self.run.model, self.ds)
        return self._frozen

    def release_frozen(self) -> None:
        """Give back the memory of the frozen network before an engine is built."""
        if self._frozen is not None:
            self._frozen.close()
        self._frozen = None

    def fingerprint(self, record: StageRecord) -> str:
        """Fingerprint of a finished stage, on every rank."""
        found: str = self.world.from_first(record.read()["fingerprint"] if self.world.is_first else "")
        return found

    def extra(self, record: StageRecord) -> dict[str, Any]:
        """Facts that a finished stage recorded, on every rank."""
        found: dict[str, Any] = self.world.from_first(record.read()["extra"] if self.world.is_first else {})
        return found

    def stage(
        self,
        title: str,
        record: StageRecord,
        inputs: Mapping[str, Any],
        outputs: list[str],
        work: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Run `work` unless its record says that it is up to date; say which, and why."""
        with agreement(self.world):
            stale = record.why_stale(inputs) if self.world.is_first else None
        reason: str | None = self.world.from_first(stale)
        if reason is None:
            self.say(f"{title}: up to date")
            return
        self.say(f"{title}: {reason}")
        started = time.monotonic()
        facts = work()
        with agreement(self.world):
            if self.world.is_first:
                record.finish(inputs, outputs, time.monotonic() - started, facts)
        self.world.barrier()
