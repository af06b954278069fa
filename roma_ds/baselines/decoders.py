"""Networks of rivals and of methods of the test time, asked to write.

Shapes: B sequences, n newest tokens, L tokens so far, V vocabulary, M steered layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roma_ds.comm import World
from roma_ds.families.batching import Batching
from roma_ds.network.steered import Steering
from roma_ds.sequences.batches import Batch, collate
from roma_ds.sequences.encoding import NOWHERE, Encoded
from roma_ds.sequences.packing import Past, pack
from roma_ds.writing.decoding import CachedSteps, Step


class VirtualDecoder:
    """peft's prompt or prefix tuning on this process alone.

    Prompts of one length run together, without padding: it would come between virtual tokens and prompt,
    where peft's own generation counts it as positions and transformers' windows count it as tokens.
    """

    partitioned = False
    batching: Batching = "padded"

    def __init__(self, world: World, model: Any, network: Any, count: int) -> None:
        """model: peft's; network: the causal LM in it; count: virtual tokens."""
        self.world, self.model, self.network, self.count = world, model, network, count
        self.generation_config = network.generation_config

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """As `Decoder`."""
        groups: dict[int, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(len(prompt), []).append(place)
        steps = [self._steps([prompts[place] for place in group]) for group in groups.values()]
        places = torch.tensor([place for group in groups.values() for place in group])

        def step(chosen: torch.Tensor | None) -> torch.Tensor:
            parts = [
                own(None if chosen is None else chosen[group])
                for own, group in zip(steps, groups.values(), strict=True)
            ]
            return torch.cat(parts)[places.argsort().to(self.world.device)]

        return step

    def _steps(self, prompts: Sequence[Sequence[int]]) -> Step:
        """Of prompts of one length."""
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
            positions = (mask.cumsum(dim=1) - 1)[:, -embeddings.shape[1] :]
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

    The prompt is run once, under the given weights, with room behind it for what will be written; then
    every token once, routed by the routers.
    """

    partitioned = False
    batching: Batching = "padded"

    def __init__(
        self,
        world: World,
        steering: Steering,
        routing: NDArray[np.float32],
        tokens: str,
        most_new: int,
        generation_config: Any,
        users: Sequence[int] | None = None,
    ) -> None:
        """steering: of the whole network; routing: [prompts, M, E]; tokens: as `roma.tokens`.

        most_new: tokens that an answer may have; generation_config: as `Decoder`; users: by prompt, the place
        of the user's last token, for `user1`.
        """
        self.world, self.steering, self.routing, self.tokens = world, steering, routing, tokens
        self.most_new, self.generation_config = most_new, generation_config
        self.users = users

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """As `Decoder`."""
        device, past = self.world.device, Past(grows=True)
        given = torch.from_numpy(self.routing[list(numbers)]).to(device)
        room = (0,) * self.most_new
        users = [NOWHERE if self.users is None else self.users[number] for number in numbers]
        asked = [
            Encoded(row, tuple(one), room, user)
            for row, (one, user) in enumerate(zip(prompts, users, strict=True))
        ]
        whole = collate(asked, self.tokens)
        lengths = whole.packing.lengths
        # [B, most_new]: the tokens behind which each new one comes.
        behind = whole.answer_position.reshape(len(prompts), self.most_new)
        turns = iter(range(self.most_new))

        def step(chosen: torch.Tensor | None) -> torch.Tensor:
            newest = behind[:, next(turns)]
            with torch.no_grad():
                if chosen is None:
                    needed = torch.cat([whole.routing_positions.flatten(), newest])
                    packing = replace(pack(lengths, needed), past=past)
                    batch = replace(whole, packing=packing, answer_position=newest)
                    return self.steering.forward(batch, given, device).logits
                past.again = newest.to(device)
                batch = _one_each(whole, newest, chosen)
                batch = replace(batch, packing=replace(batch.packing, past=past))
                logits: torch.Tensor = self.steering.routed(**batch.inputs(device)).logits
                return logits

        return step


def _one_each(whole: Batch, newest: torch.Tensor, chosen: torch.Tensor) -> Batch:
    """A batch of one token of every sequence of `whole`: `chosen` int64 [B], at the places `newest`."""
    every = torch.arange(len(newest))
    return Batch(
        input_ids=chosen,
        position_ids=whole.position_ids[newest],
        packing=replace(pack(whole.packing.lengths, newest), rows=every, row_of=every),
        routing_positions=every[:, None],
        routing_weights=torch.ones(len(newest), 1),
        answer_sequence=every,
        answer_position=every,
        answer_ids=chosen,
        rows=whole.rows,
    )
