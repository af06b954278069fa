"""What the stages of one process share: ranks, config, and the frozen model while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from roma_ds.backbone.blueprint import blueprint
from roma_ds.backbone.checkpoint_check import check_checkpoint
from roma_ds.backbone.checksums import checksums, refuse_changed, sampled_keys
from roma_ds.backbone.encoding import Prompt, encode
from roma_ds.backbone.frozen import FrozenModel, is_zero3
from roma_ds.backbone.loading import checkpoint_hash, load_config, load_tokenizer
from roma_ds.backbone.plain import PlainModel
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.sample import Sample
from roma_ds.data.store import load_samples
from roma_ds.data.tasks import new_tokens_of
from roma_ds.errors import UserError
from roma_ds.families import family_of
from roma_ds.pipeline.folders import Folders, describe_run
from roma_ds.pipeline.prefixes import Part, Prefixes
from roma_ds.pipeline.staging import run_stage
from roma_ds.storage.stage import StageRecord
from roma_ds.training.interruption import Interruption

EVALUATED = "eval.parquet"
"""The data stage's file of evaluation samples."""


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
        self.partitioned = is_zero3(ds)
        self.is_cell = False
        """Whether a study trains it: its curves stay beside its own files."""
        self.made: list[str] = []
        """Titles of the stages that were not up to date."""
        self._described = False
        self._frozen: FrozenModel | None = None
        self._suffix: FrozenModel | None = None
        self._plain: PlainModel | None = None
        self._prompts: dict[str, list[Prompt]] = {}
        self.prefixes = Prefixes(self)
        with agreement(world):
            model_config = load_config(run.model)
            self.family = family_of(model_config)
            self.tokenizer = load_tokenizer(run.model)
            self.files = check_checkpoint(run.model)
            self.whole = blueprint(run.model)
        if self.family.limits:
            self.say(f"model: family {self.family.name} is {self.family.support}: {self.family.reason}")
        self.context: int | None = getattr(model_config, "max_position_embeddings", None)
        self.model_hash: str = world.from_first(checkpoint_hash(run.model, model_config))
        self._refuse_changed_weights()

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

    def _refuse_changed_weights(self) -> None:
        """Compare sampled weights with those that routing was collected from; each host looks at its own."""
        recorded: dict[str, str] = self.world.from_first(self._recorded_sums() if self.world.is_first else {})
        ranks = self.world.ranks
        with agreement(self.world):
            refuse_changed(self.files, recorded, sorted(recorded)[ranks.local_rank :: ranks.local_world_size])

    def _recorded_sums(self) -> dict[str, str]:
        """Of the checkpoint as it is here; none where nothing was collected from it."""
        record = self.folders.record("collect")
        if not record.path.exists():
            return {}
        try:
            content = record.read()
            mine = content["inputs"]["model"] == self.model_hash
            return dict(content["extra"].get("checksums", {})) if mine else {}
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            # The collection says itself that its record is damaged.
            return {}

    def checksums(self) -> dict[str, str]:
        """SHA-256 of sampled weights by checkpoint key, on every rank; each rank reads some."""
        with agreement(self.world):
            keys = sampled_keys(self.files, self.whole.layout)
            mine = checksums(self.files, keys[self.world.rank :: self.world.size])
        parts = self.world.gather_objects(mine)
        return {key: value for part in parts for key, value in part.items()}

    def say(self, text: str) -> None:
        """Print on rank 0."""
        if self.world.is_first:
            print(text, flush=True)

    @property
    def generates(self) -> bool:
        """Whether some task's answers are generated and read, instead of scored."""
        return bool(new_tokens_of(self.run))

    @property
    def model_inputs(self) -> dict[str, Any]:
        """What identifies the network in a stage's inputs."""
        return {"model": self.model_hash, "dtype": self.run.model.dtype}

    def pretrained(self) -> FrozenModel:
        """The whole network with its own routers."""
        model = self.frozen()
        model.use_routers({})
        return model

    def frozen(self) -> FrozenModel:
        """The whole network with the routers that were put in last, loaded when it is first asked for."""
        if self._frozen is None:
            self.release_frozen()
            self._frozen = FrozenModel(self.world, self.run.model, self.ds)
        return self._frozen

    def suffix(self, first: int) -> FrozenModel:
        """The network from layer `first` on, for cached hidden states."""
        if self._suffix is None or self._suffix.routed.first != first:
            self.release_frozen()
            self._suffix = FrozenModel(self.world, self.run.model, self.ds, first)
        return self._suffix

    def plain(self) -> PlainModel:
        """The whole network as the library runs it, which can generate."""
        if self._plain is None:
            self.release_frozen()
            self._plain = PlainModel(self.world, self.run.model, self.ds)
        return self._plain

    def release_frozen(self) -> None:
        """Give back the memory of the frozen networks before another one is loaded."""
        for model in (self._frozen, self._suffix, self._plain):
            if model is not None:
                model.close()
        self._frozen = self._suffix = self._plain = None

    def samples(self, name: str) -> list[Sample]:
        """The samples in the data stage's file `name`, on every rank."""
        with agreement(self.world):
            return load_samples(self.folders.stage("data") / name)

    def prompts(self, name: str) -> list[Prompt]:
        """The same as token ids. No collective."""
        if name not in self._prompts:
            samples = load_samples(self.folders.stage("data") / name)
            self._prompts[name] = encode(
                samples,
                self.tokenizer,
                self.run.data.max_tokens,
                self.context,
                new_tokens_of(self.run) if name == EVALUATED else None,
                self.run.data.long_prompts == "refuse",
            )
        return self._prompts[name]

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
