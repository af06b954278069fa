"""Networks of rivals and of methods of the test time, asked to write.

Shapes: B sequences, n newest tokens, L tokens so far, V vocabulary, M steered layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.backbone.decoding import CachedSteps, Step
from roma_ds.backbone.encoding import Encoded
from roma_ds.backbone.feed import Feed
from roma_ds.backbone.steered import Steering
from roma_ds.comm import World


class VirtualDecoder:
    """peft's prompt or prefix tuning on this process alone.

    Positions count from the first virtual token and leave padding out, as in training; peft's own
    generation would count padding.
    """

    partitioned = False

    def __init__(self, world: World, model: Any, network: Any, count: int) -> None:
        """model: peft's; network: the causal LM in it; count: virtual tokens."""
        self.world, self.model, self.network, self.count = world, model, network, count
        self.generation_config = network.generation_config

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """As `Decoder`."""
        from transformers import DynamicCache

        with torch.no_grad():
            virtual = self.model.get_prompt(len(prompts))
        # Of prefix tuning these are keys and values already in a cache.
        embedded = isinstance(virtual, torch.Tensor)
        cache = DynamicCache(config=self.network.config) if embedded else virtual

        def logits(ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
            return self._newest(ids, mask, cache, virtual if embedded else None)

        return CachedSteps(prompts, cache, logits)

    def _newest(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, virtual: torch.Tensor | None
    ) -> torch.Tensor:
        device = self.world.device
        mask = torch.cat([mask.new_ones(len(mask), self.count), mask], dim=1).to(device)
        with torch.no_grad():
            embeddings = self.network.get_input_embeddings()(ids.to(device))
            if virtual is not None and not cache.get_seq_length():
                embeddings = torch.cat([virtual.to(embeddings.dtype), embeddings], dim=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
            found: torch.Tensor = self.network(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return found[:, -1].float()


class SteeredDecoder:
    """A network whose routing is given at the prompt's tokens, on this process alone.

    It reads the whole sequence for every new token: packed batches keep no keys and values.
    """

    partitioned = False

    def __init__(self, world: World, steering: Steering, routing: NDArray[np.float32], tokens: str) -> None:
        """steering: of the whole network; routing: [prompts, M, E]; tokens: as `roma.tokens`."""
        self.world, self.steering, self.routing, self.tokens = world, steering, routing, tokens
        self.generation_config = steering.routed.network.generation_config

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """As `Decoder`."""
        device = self.world.device
        given = torch.from_numpy(self.routing[list(numbers)]).to(device)
        written: list[list[int]] = [[] for _ in prompts]

        def step(chosen: torch.Tensor | None) -> torch.Tensor:
            if chosen is not None:
                for own, token in zip(written, chosen.tolist(), strict=True):
                    own.append(token)
            # What stands last in a continuation is predicted and not read.
            sequences = [
                Encoded(row, tuple(prompt), (*own, 0))
                for row, (prompt, own) in enumerate(zip(prompts, written, strict=True))
            ]
            batch = Feed(sequences, self.tokens).batch(range(len(sequences)))
            with torch.no_grad():
                logits = self.steering.forward(batch, given, device).logits
            last = torch.tensor([len(own) + 1 for own in written]).cumsum(dim=0) - 1
            return logits[last.to(device)]

        return step
