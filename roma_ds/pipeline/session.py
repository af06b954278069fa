"""What the stages of one process share: the model, its prefix caches, and the record of what was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.pipeline.folders import Folders, describe_run
from roma_ds.pipeline.held_model import HeldModel
from roma_ds.pipeline.prefixes import Part, Prefixes
from roma_ds.pipeline.staging import run_stage
from roma_ds.storage.stage import StageRecord
from roma_ds.training.interruption import Interruption


class Session(HeldModel):
    """One process of a run. Its methods are collectives."""

    def __init__(
        self, world: World, run: RunConfig, ds: Mapping[str, Any], interruption: Interruption
    ) -> None:
        super().__init__(world, run, ds)
        self.interruption = interruption
        self.is_cell = False
        """Whether a study trains it: its curves stay beside its own files."""
        self.made: list[str] = []
        """Titles of the stages that were not up to date."""
        self._described = False
        self.prefixes = Prefixes(self)

    def cell(self, run: RunConfig, folders: Folders, entering: int | None) -> Session:
        """A session of the same model and ranks for another run; entering: as `Prefixes`.

        It shares what was read and encoded, and no network: this one gives back its own. No collective.
        """
        self.release_frozen()
        other = copy(self)
        other.run, other.folders, other.is_cell = run, folders, True
        other.prefixes = Prefixes(other, entering)
        # What the outer run was made with is written once, in its own folder.
        other._described = True
        return other

    def stage(
        self,
        title: str,
        record: StageRecord,
        inputs: Mapping[str, Any],
        outputs: list[str],
        work: Callable[[], Mapping[str, Any]],
        cache: Part | None = None,
    ) -> None:
        """Run `work` unless its record says that it is up to date; say which, and why.

        cache: the prefix cache that the stage also makes.
        """

        def described() -> Mapping[str, Any]:
            facts = work()
            self.made.append(title)
            with agreement(self.world):
                self.describe()
            return facts

        run_stage(
            self.world,
            self.say,
            title,
            record,
            inputs,
            outputs,
            described,
            lambda: self.prefixes.why_stale(cache) if cache is not None else None,
        )

    def describe(self) -> None:
        """Write the resolved configs and the environment, once: called when something was made with them.

        No collective; rank 0 writes.
        """
        if self.world.is_first and not self._described:
            describe_run(self.folders, self.run, dict(self.ds), self.world.size, str(self.world.device))
        self._described = True
