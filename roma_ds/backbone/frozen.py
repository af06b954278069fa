"""The frozen forward pass over many samples, on all ranks: routing weights and option log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from roma_ds.backbone.batches import Batch, collate, in_batches
from roma_ds.backbone.encoding import Encoded, Prompt
from roma_ds.backbone.loading import load_model
from roma_ds.backbone.routed import RoutedLM
from roma_ds.backbone.scores import Scores
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import MoELayout, detect
from roma_ds.progress import Progress

FILLER = Encoded(-1, (0,), (0,))
MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")


def is_zero3(ds: Mapping[str, Any]) -> bool:
    """Whether a resolved DeepSpeed config partitions the weights."""
    return int(ds.get("zero_optimization", {}).get("stage", 0)) == 3


class FrozenModel:
    """The network without training: whole on each rank below ZeRO stage 3, partitioned at stage 3."""

    def __init__(self, world: World, model: ModelConfig, ds: Mapping[str, Any]) -> None:
        self.world = world
        self.partitioned = is_zero3(ds)
        network = load_model(model, dict(ds) if self.partitioned else None, world.device)
        with agreement(world):
            self.layout: MoELayout = detect(network)
        self.total_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in network.parameters())
        self.routed = RoutedLM(network, self.layout, self.layout.layers)
        self._call: Any = self.routed
        if self.partitioned:
            import deepspeed

            plain = {key: deepcopy(value) for key, value in ds.items() if key not in MONITORS}
            self._call, *_ = deepspeed.initialize(model=self.routed, config=plain)
        self.routed.attach()
        self._original: dict[int, torch.Tensor] = {}

    def close(self) -> None:
        """Give back the memory; an engine's hooks would otherwise keep partitioned weights alive."""
        if self.partitioned:
            self._call.destroy()
        self._call = None

    def _write(self, weights: Mapping[int, torch.Tensor]) -> None:
        import deepspeed

        routers = self.routed.routers()
        for layer in sorted(weights):
            target = routers[layer]
            with deepspeed.zero.GatheredParameters([target], modifier_rank=0, enabled=self.partitioned):
                self._original.setdefault(layer, target.detach().to("cpu", copy=True))
                if not self.partitioned or self.world.is_first:
                    target.data.copy_(weights[layer].to(target.device, target.dtype))

    def _check(self, weights: Mapping[int, torch.Tensor]) -> None:
        for layer, weight in weights.items():
            if layer not in self.layout.layers:
                raise UserError(
                    f"the router file has layer {layer}, the model has none", "use its own base model"
                )
            site = self.layout.sites[self.layout.layers.index(layer)]
            if tuple(weight.shape) != (site.experts, site.hidden):
                raise UserError(
                    f"the router of layer {layer} has shape {tuple(weight.shape)} in the router file and "
                    f"{(site.experts, site.hidden)} in the model",
                    "use the base model that the routers were trained on",
                )

    def use_routers(self, weights: Mapping[int, torch.Tensor]) -> None:
        """Put router weights [experts, hidden] by layer number in place; other layers get back their own.

        Raises UserError when a layer or a shape does not fit this model. A collective under ZeRO-3.
        """
        with agreement(self.world):
            self._check(weights)
        self._write({layer: kept for layer, kept in self._original.items() if layer not in weights})
        self._write(weights)

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Prompt], tokens: str, batch_size: int, title: str, pad_id: int
    ) -> Scores | None:
        """Score every prompt; the result is complete on rank 0 and None elsewhere.

        tokens: which prompt tokens make up the routing weights, as `roma.tokens`. A collective.
        """
        requests = _requests(prompts)
        # Ranks share batches, not sequences: what is padded together, and with it the last bits of a result,
        # is the same on any number of ranks.
        everything = list(in_batches(requests, batch_size))
        batches = [everything[index] for index in self.world.share(len(everything))]
        rounds = math.ceil(len(everything) / self.world.size)
        found: list[tuple[int, int, float, bool, float, Any, Any]] = []
        seen_tokens = 0
        with Progress(sum(map(len, batches)), title, enabled=self.world.is_first) as progress:
            for turn in range(rounds):
                # Under ZeRO-3 every forward is a collective: a rank with nothing left still takes part.
                group = batches[turn] if turn < len(batches) else [FILLER]
                batch = collate(group, pad_id, tokens)
                output = self._call(**batch.inputs(self.world.device))
                if turn < len(batches):
                    found.extend(_results(group, batch, output.logits, output.routing, prompts))
                    seen_tokens += batch.tokens
                    progress.advance(len(group))
        gathered = self.world.gather_to_first((found, seen_tokens))
        if gathered is None:
            return None
        results = [item for part, _ in gathered for item in part]
        return Scores.assemble(prompts, results, tokens_read=sum(count for _, count in gathered))


def _requests(prompts: Sequence[Prompt]) -> list[Encoded]:
    """Sequences to run: one per prompt where that scores all options, else one per option.

    A sequence's row is its number among the requests' prompts; options beyond the first share it.
    """
    requests = []
    for row, prompt in enumerate(prompts):
        if prompt.single_token_options or not prompt.options:
            requests.append(Encoded(row, prompt.prompt, prompt.target))
        else:
            requests.extend(Encoded(row, prompt.prompt, option) for option in prompt.options)
    return requests


def _results(
    group: Sequence[Encoded],
    batch: Batch,
    logits: torch.Tensor,
    routing: torch.Tensor,
    prompts: Sequence[Prompt],
) -> list[tuple[int, int, float, bool, float, Any, Any]]:
    logprobs = torch.log_softmax(logits, dim=-1).cpu()
    chosen = logprobs.gather(1, batch.answer_ids[:, None])[:, 0]
    rivals = logprobs.scatter(1, batch.answer_ids[:, None], float("-inf")).amax(dim=-1)
    weights = routing.to(torch.float16).cpu().numpy()
    results = []
    for index, sequence in enumerate(group):
        places = (batch.answer_sequence == index).nonzero()[:, 0]
        prompt = prompts[sequence.row]
        options = None
        number = -1
        if prompt.single_token_options:
            ids = torch.tensor([option[0] for option in prompt.options])
            options = logprobs[places[0], ids].numpy().astype(np.float32)
        elif prompt.options:
            number = prompt.options.index(sequence.continuation)
        results.append(
            (
                sequence.row,
                number,
                float(chosen[places].sum()),
                bool((chosen[places] >= rivals[places]).all()),
                float((chosen[places] - rivals[places]).min()),
                options,
                weights[index],
            )
        )
    return results
