"""The model of a run on all ranks: what is known of it and what it reads, and its networks while needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from roma_ds.checkpoint.blueprint import blueprint, check_checkpoint
from roma_ds.checkpoint.checksums import checksums, refuse_changed, sampled_keys
from roma_ds.checkpoint.loading import checkpoint_hash, load_config, load_tokenizer
from roma_ds.comm import World, agreement
from roma_ds.config import RunConfig
from roma_ds.data.chat import ChatTemplate
from roma_ds.data.learned import training_tokens
from roma_ds.data.sample import Sample
from roma_ds.data.store import load_samples
from roma_ds.data.tasks import new_tokens_of
from roma_ds.errors import UserError
from roma_ds.families import family_of
from roma_ds.frozen_pass.frozen_model import FrozenModel, is_zero3
from roma_ds.pipeline.data import chat_of
from roma_ds.pipeline.folders import Folders
from roma_ds.sequences.encoding import Prompt, encode, require_user_ends
from roma_ds.storage.stage import StageRecord
from roma_ds.writing.decoding import Decoder
from roma_ds.writing.plain import PlainModel
from roma_ds.writing.tree_decoding import TreeDecoder

EVALUATED = "eval.parquet"
"""The data stage's file of evaluation samples."""


class HeldModel:
    """What a process holds of its run's model. Methods are collectives unless they say otherwise."""

    def __init__(self, world: World, run: RunConfig, ds: Mapping[str, Any]) -> None:
        """ds: resolved. Raises UserError where model and checkpoint do not go together."""
        self.world = world
        self.run = run
        self.ds = ds
        self.folders = Folders(Path(run.output_dir))
        self.partitioned = is_zero3(ds)
        self._frozen: FrozenModel | None = None
        self._suffix: FrozenModel | None = None
        self._plain: PlainModel | None = None
        self._prompts: dict[str, list[Prompt]] = {}
        with agreement(world):
            model_config = load_config(run.model)
            self.family = family_of(model_config)
            self.tokenizer = load_tokenizer(run.model)
            self.files = check_checkpoint(run.model)
            self.whole = blueprint(run.model, self.files)
        if self.family.limits:
            self.say(f"model: family {self.family.name} is {self.family.support}: {self.family.reason}")
        self.vocabulary = int(model_config.vocab_size)
        self.context: int | None = getattr(model_config, "max_position_embeddings", None)
        self.model_hash: str = world.from_first(checkpoint_hash(run.model, model_config))
        self._refuse_changed_weights()

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
    def has_more_tokens(self) -> bool:
        """Whether the tokenizer has ids without a row in the embedding; texts need not contain them."""
        return max(self.tokenizer.get_vocab().values(), default=0) >= self.vocabulary

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """What wrote the prompts, once the data are there; None where they are plain text. No collective."""
        return chat_of(self.run, self.folders, self.tokenizer)

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

    def decoder(self, weights: Mapping[int, torch.Tensor]) -> Decoder:
        """What writes answers, with these routers and the others' own: packed trees where the family can."""
        if self.family.shares_tokens:
            frozen = self.frozen()
            frozen.use_routers(weights)
            return TreeDecoder(frozen, self.run.model)
        self.say(
            f"write: by the library's own forward pass, since layers of {self.family.name} models mix tokens "
            "otherwise than by attention"
        )
        plain = self.plain()
        plain.use_routers(weights)
        return plain

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
                new_tokens_of(self.run) if name == EVALUATED else training_tokens(self.run),
                self.run.data.long_prompts == "refuse",
                self.vocabulary,
            )
        if self.run.roma.tokens == "user1":
            require_user_ends(self._prompts[name], lambda row: self._sample_id(name, row))
        return self._prompts[name]

    def _sample_id(self, name: str, row: int) -> str:
        return load_samples(self.folders.stage("data") / name)[row].id

    def fingerprint(self, record: StageRecord) -> str:
        """Fingerprint of a finished stage, on every rank."""
        found: str = self.world.from_first(record.read()["fingerprint"] if self.world.is_first else "")
        return found

    def extra(self, record: StageRecord) -> dict[str, Any]:
        """Facts that a finished stage recorded, on every rank."""
        found: dict[str, Any] = self.world.from_first(record.read()["extra"] if self.world.is_first else {})
        return found
