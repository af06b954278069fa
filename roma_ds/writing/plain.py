"""A causal LM by the library's own forward pass: for models without routers, or that cannot be packed.

Sequences that are scored are padded on the right, where padding changes no real token; those that are gone on
with on the left, or not at all where a model cannot have that.
Shapes: B sequences, L tokens of the longest, n newest of them, K positions that are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from roma_ds.checkpoint.loaded_weights import refuse_not_finite
from roma_ds.checkpoint.loading import checkpoint, load_config, load_generation_config, loading_faults
from roma_ds.checkpoint.span import Span, load_span
from roma_ds.checkpoint.stored.declared import require_plain_weights
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import detect, family_of, has_routers
from roma_ds.families.batching import scoring_batches, writing_batches
from roma_ds.families.composite import whole_config
from roma_ds.families.library_network import library_class
from roma_ds.frozen_pass.frozen_model import OF_TRAINING, is_zero3
from roma_ds.network.buffers import exact_buffers
from roma_ds.network.release import release, return_freed_memory
from roma_ds.network.router_weights import RouterWeights
from roma_ds.prefix.feed import FILLER
from roma_ds.progress import Progress
from roma_ds.sequences.batches import in_batches
from roma_ds.sequences.encoding import Encoded, Prompt
from roma_ds.sequences.found import Record
from roma_ds.sequences.request_set import Requests, requests_of, result_of
from roma_ds.sequences.scores import Scores
from roma_ds.writing.decoding import CachedSteps, Step, right_padded

NO_ROUTING = np.zeros((0, 0), np.float16)


class _Cache:
    """What a network keeps of the tokens that it has read."""

    def __init__(self, network: Any) -> None:
        from transformers import DynamicCache

        # Some models make one of their own kind.
        common = network._supports_default_dynamic_cache()
        self.past = DynamicCache(config=network.config) if common else None


class _Root(nn.Module):
    """What DeepSpeed wraps: the network, asked for logits at some positions alone."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, asked: torch.Tensor, cache: _Cache | None
    ) -> torch.Tensor:
        """[B, K, V] at the places `asked` int64 [K] of input_ids [B, n].

        These are the newest n of the L tokens that mask [B, L] marks.
        """
        before = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        positions = (torch.arange(mask.shape[1], device=mask.device) - before).clamp(min=0)
        found = self.network(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions[:, -input_ids.shape[1] :],
            past_key_values=cache.past if cache is not None else None,
            use_cache=cache is not None,
            logits_to_keep=asked,
        )
        if cache is not None:
            cache.past = found.past_key_values
        logits: torch.Tensor = found.logits
        return logits


class PlainModel:
    """A network as transformers has it, whole on each rank below ZeRO stage 3, partitioned at stage 3."""

    def __init__(self, world: World, model: ModelConfig, ds: Mapping[str, Any]) -> None:
        """Load it; a collective. Raises UserError for an unfit checkpoint, EnvironmentFault for memory."""
        self.world = world
        self.partitioned = is_zero3(ds)
        with agreement(world):
            config = load_config(model)
        network = self._whole(model, config, ds)
        with agreement(world):
            refuse_not_finite(network, world.rank)
        network.config.use_cache = True
        self.network = network
        self.config = network.config
        self.batching = writing_batches(self.config)
        with agreement(world):
            self.generation_config = load_generation_config(model, config)
        self._root = _Root(network)
        self._call: Any = self._root
        if self.partitioned:
            import deepspeed

            plain = {key: deepcopy(value) for key, value in ds.items() if key not in OF_TRAINING}
            with exact_buffers(self._root):
                self._call, *_ = deepspeed.initialize(model=self._root, config=plain)
        self._weights = None
        if has_routers(config):
            sites = detect(network).sites
            routers = {site.layer: network.get_parameter(f"{site.product}.weight") for site in sites}
            self._weights = RouterWeights(world, routers, sites, self.partitioned)

    def _whole(self, model: ModelConfig, config: Any, ds: Mapping[str, Any]) -> Any:
        zero3 = dict(ds) if self.partitioned else None
        if has_routers(config):
            span = Span.suffix(0, family_of(config).depth(config))
            return load_span(model, span, zero3, self.world.device, self.world)
        return self._dense(model, config, zero3)

    def _dense(self, model: ModelConfig, config: Any, zero3: dict[str, Any] | None) -> Any:
        from transformers import AutoModelForCausalLM

        partitioning: Any = None
        if zero3 is not None:
            from transformers.integrations import HfDeepSpeedConfig

            # transformers partitions what it loads as long as this object lives.
            partitioning = HfDeepSpeedConfig(zero3)
        with agreement(self.world), loading_faults(model):
            require_plain_weights(model)
            kind = AutoModelForCausalLM if model.trust_remote_code else library_class(config)
            network, report = kind.from_pretrained(
                checkpoint(model),
                config=whole_config(config) or config,
                revision=model.revision,
                dtype=getattr(torch, model.dtype),
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
            )
            if missing := sorted(report["missing_keys"]):
                raise UserError(
                    f"model.path: {model.path} lacks {len(missing)} weights, {missing[0]} among them",
                    "use a whole checkpoint",
                )
        if partitioning is None:
            network.to(self.world.device)
        del partitioning
        return network.eval().requires_grad_(False)

    def close(self) -> None:
        """Give back the memory."""
        if self.partitioned:
            self._call.destroy()
        self._call = None
        release(self._root)
        return_freed_memory()

    def use_routers(self, weights: Mapping[int, torch.Tensor]) -> None:
        """Put router weights [experts, hidden] by layer number in place; others get back their own.

        Raises UserError where they do not fit this model. A collective under ZeRO-3.
        """
        if self._weights is not None:
            self._weights.use(weights)
        elif weights:
            raise UserError("this model has no routers", "use the base model of the router file")

    def logits(
        self, ids: torch.Tensor, mask: torch.Tensor, asked: torch.Tensor, cache: _Cache | None = None
    ) -> torch.Tensor:
        """[B, K, V] on the device, in the type that the network gives, at the places `asked` int64 [K].

        Under ZeRO-3 a collective: all ranks call it equally often.
        """
        device = self.world.device
        with torch.no_grad():
            found: torch.Tensor = self._call(ids.to(device), mask.to(device), asked.to(device), cache)
        return found

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """Begin to write behind these prompts, as `Decoder`."""
        return CachedSteps(prompts, _Cache(self.network), self._newest)

    def _newest(self, ids: torch.Tensor, mask: torch.Tensor, cache: _Cache) -> torch.Tensor:
        # As an index: a slice would make the head's product copy its weight for every sequence on a CPU.
        last = torch.tensor([ids.shape[1] - 1])
        return self.logits(ids, mask, last, cache)[:, -1].float()

    def score(self, prompts: Sequence[Prompt], batch_size: int, title: str) -> Scores | None:
        """Score every prompt, without routing; complete on rank 0, None elsewhere. A collective."""
        requests, world = requests_of(prompts), self.world
        batches = in_batches(requests.lengths, batch_size)
        if scoring_batches(self.config) == "alone":
            batches = [[number] for batch in batches for number in batch]
        mine = [batches[index] for index in world.share(len(batches))]
        found: list[Record] = []
        with Progress(sum(map(len, mine)), title, enabled=world.is_first) as progress:
            for turn in range(-(-len(batches) // world.size)):
                numbers = mine[turn] if turn < len(mine) else []
                if not (numbers or self.partitioned):
                    break
                sequences = [requests.sequences[number] for number in numbers] or [FILLER]
                ids, mask = right_padded([(*one.prompt, *one.continuation[:-1]) for one in sequences])
                places = [_predicting(one) for one in sequences]
                asked = torch.tensor(sorted({place for own in places for place in own}))
                logits = self.logits(ids, mask, asked)
                if numbers:
                    rows = [
                        own[torch.isin(asked, torch.tensor(at)).to(own.device)]
                        for own, at in zip(logits, places, strict=True)
                    ]
                    found += _records(requests, numbers, rows)
                    progress.advance(len(numbers))
        gathered = world.gather_to_first(found)
        if gathered is None:
            return None
        records = [record for part in gathered for record in part]
        return Scores.assemble(prompts, records, tokens_read=sum(requests.lengths))


def _predicting(sequence: Encoded) -> range:
    """Places of the tokens that the continuation is predicted from."""
    first = len(sequence.prompt) - 1
    return range(first, first + len(sequence.continuation))


def _records(requests: Requests, numbers: Sequence[int], logits: Sequence[torch.Tensor]) -> list[Record]:
    """Results of the sequences `numbers`; logits [K, V] of each where its continuation is predicted."""
    records: list[Record] = []
    for number, own in zip(numbers, logits, strict=True):
        records.append(result_of(requests, number, own.float(), NO_ROUTING))
    return records
