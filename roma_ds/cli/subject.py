"""The run that `roma-ds check` looks at, read part by part."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from roma_ds.config import RunConfig, resolve_deepspeed
from roma_ds.errors import RomaError

if TYPE_CHECKING:
    from roma_ds.data import Sample
    from roma_ds.data.chat import ChatTemplate
    from roma_ds.data.records import DatasetRecord
    from roma_ds.families import MoELayout
    from roma_ds.sequences.encoding import Prompt

FIRST_ROWS = 64
"""Samples whose tokens are counted where long prompts are cut."""


class Subject:
    """The run that is looked at. What several checks need is read once."""

    def __init__(self, run: RunConfig, world_size: int) -> None:
        self.run, self.world_size = run, world_size

    @cached_property
    def ds(self) -> dict[str, Any]:
        """The resolved DeepSpeed config."""
        return resolve_deepspeed(self.run, self.world_size)

    @cached_property
    def evaluation_only(self) -> str | None:
        """Why nothing of the model can be trained; None where it can, and where its config cannot be read."""
        from roma_ds.checkpoint.loading import load_config
        from roma_ds.families import why_untrained

        try:
            return why_untrained(load_config(self.run.model))
        except RomaError:
            return None

    def require_evaluable(self) -> None:
        """Raises UserError where the library has no network of the model that could be measured."""
        from roma_ds.checkpoint.loading import load_config
        from roma_ds.families.library_network import require_network

        # Code of the checkpoint's own is not run here.
        if not self.run.model.trust_remote_code:
            require_network(load_config(self.run.model))

    @property
    def mixing(self) -> str | None:
        """Why its sequences are run one at a time, where they are."""
        from roma_ds.checkpoint.loading import load_config
        from roma_ds.families.batching import mixing_reason

        return mixing_reason(load_config(self.run.model))

    @cached_property
    def context(self) -> int | None:
        """Tokens that the model reads at most."""
        from roma_ds.checkpoint.loading import load_config

        found: int | None = getattr(load_config(self.run.model), "max_position_embeddings", None)
        return found

    @cached_property
    def network(self) -> Any:
        """The model on the meta device."""
        from roma_ds.checkpoint.span import skeleton

        return skeleton(self.run.model)

    @cached_property
    def layout(self) -> MoELayout:
        """Its routers."""
        from roma_ds.families import detect

        return detect(self.network)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers whose routers are trained."""
        return self.layout.choose(self.run.roma.layers)

    @cached_property
    def looks_at_all(self) -> bool:
        """Whether the tokens of every sample are looked at: too long ones are refused, or there are tokens
        that the model does not know."""
        from roma_ds.checkpoint.loading import load_config

        if self.run.data.long_prompts == "refuse":
            return True
        try:
            vocabulary = getattr(load_config(self.run.model), "vocab_size", None)
            highest = max(self.tokenizer.get_vocab().values(), default=0)
        except RomaError:
            # Looking at tokens says so.
            return False
        return vocabulary is not None and highest >= vocabulary

    @cached_property
    def _read(self) -> tuple[list[Sample], int, list[DatasetRecord]]:
        from roma_ds.data.learned import generated_datasets
        from roma_ds.data.mixture import first_training

        every = self.looks_at_all or bool(generated_datasets(self.run))
        return first_training(self.run, self.chat, None if every else FIRST_ROWS)

    @property
    def records(self) -> list[DatasetRecord]:
        """What became of each training dataset."""
        return self._read[2]

    @property
    def trained(self) -> tuple[list[Sample], int, list[str]]:
        """The first training samples, how many there are, and what is to be said of their files."""
        from roma_ds.data.store import told

        samples, count, records = self._read
        return samples, count, told(self.run, records)

    @property
    def training(self) -> list[Sample]:
        """The first training samples; all where each is looked at, or judged by generated answers."""
        return self.trained[0]

    @cached_property
    def _evaluated(self) -> tuple[list[Sample], list[DatasetRecord]]:
        from roma_ds.data.mixture import load_evaluated

        return load_evaluated(self.run, self.chat)

    @property
    def evaluated_records(self) -> list[DatasetRecord]:
        """What became of each task."""
        return self._evaluated[1]

    @property
    def evaluated(self) -> tuple[list[Sample], list[str]]:
        """Evaluation samples, and what is to be said of their files."""
        from roma_ds.data.store import told

        samples, records = self._evaluated
        return samples, told(self.run, records)

    @property
    def evaluation(self) -> list[Sample]:
        """Evaluation samples."""
        return self.evaluated[0]

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from roma_ds.checkpoint.loading import load_tokenizer

        return load_tokenizer(self.run.model)

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """What writes the prompts; None where they are plain text."""
        from pathlib import Path

        from roma_ds.pipeline.data import chat_of
        from roma_ds.pipeline.folders import Folders

        if self.run.data.template == "plain":
            return None
        return chat_of(self.run, Folders(Path(self.run.output_dir)), self.tokenizer)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first training samples as token ids; all where too long ones are refused."""
        from roma_ds.data.learned import training_tokens

        return self._encoded(self.training, training_tokens(self.run))

    @cached_property
    def questions(self) -> list[Prompt]:
        """The same of evaluation."""
        from roma_ds.data.tasks import new_tokens_of

        return self._encoded(self.evaluation, new_tokens_of(self.run))

    def _encoded(self, samples: list[Sample], new_tokens: Mapping[str, int]) -> list[Prompt]:
        from roma_ds.checkpoint.loading import load_config
        from roma_ds.sequences.encoding import encode, require_user_ends

        refuse = self.run.data.long_prompts == "refuse"
        vocabulary = getattr(load_config(self.run.model), "vocab_size", None)
        prompts = encode(
            samples if self.looks_at_all else samples[:FIRST_ROWS],
            self.tokenizer,
            self.run.data.max_tokens,
            self.context,
            new_tokens,
            refuse,
            vocabulary,
        )
        if self.run.roma.tokens == "user1":
            require_user_ends(prompts, lambda row: samples[row].id)
        return prompts
