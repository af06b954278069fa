"""Decoding by packed trees: what prompts share is run and kept once, and each step runs one token an answer.

Shapes: B sequences of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from roma_ds.checkpoint.loading import load_config, load_generation_config
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.frozen_pass.frozen_model import FrozenModel
from roma_ds.network.routed import RoutedOutput
from roma_ds.sequences.packing import Packing, pack_newest, pack_shared
from roma_ds.sequences.token_tree import tree_of
from roma_ds.sequences.tree_cache import TreeCache
from roma_ds.writing.decoding import Step


class TreeSteps:
    """A `Step` of a packed network, which answers may leave."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        forward: Callable[..., RoutedOutput],
        device: torch.device,
    ) -> None:
        """prompts: of at least one token each; forward: of `RoutedLM`, or of what DeepSpeed makes of it."""
        self._tree = tree_of([tuple(prompt) for prompt in prompts])
        self._forward, self._device = forward, device
        self.cache = TreeCache(self._tree)
        self._order = torch.tensor(self.cache.order)

    def __call__(self, chosen: torch.Tensor | None) -> torch.Tensor:
        """As `Step`."""
        if chosen is None:
            tree = self._tree
            ends = torch.tensor([tree.segments[leaf].stop - 1 for leaf in tree.leaves])
            ids, positions = torch.tensor(tree.ids), tree.positions()
            return self._logits(ids, positions, pack_shared(tree, ends, self.cache), ends)
        self.cache.step()
        packing = pack_newest(self.cache)
        logits = self._logits(chosen[self._order], self.cache.positions, packing, packing.rows)
        if torch.equal(self._order, packing.rows):
            # The usual case; a copy would be as large as the vocabulary times the answers.
            return logits
        return logits[self._order.argsort().to(logits.device)]

    def stay(self, rows: Sequence[int]) -> None:
        """As `Leaving`."""
        kept = torch.tensor(sorted(rows))
        there = torch.isin(self._order, kept)
        self.cache.stay(there.nonzero()[:, 0].tolist())
        self._order = torch.searchsorted(kept, self._order[there])

    def _logits(
        self, ids: torch.Tensor, positions: torch.Tensor, packing: Packing, asked: torch.Tensor
    ) -> torch.Tensor:
        """float32 [B, V] at `asked` int64 [B], indices of the tokens that are run."""
        device, none = self._device, torch.zeros(len(asked), 0)
        with torch.no_grad():
            output: RoutedOutput = self._forward(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                packing=packing.to(device),
                routing_positions=none.long().to(device),
                routing_weights=none.to(device),
                answer_position=asked.to(device),
            )
        return output.logits


class TreeDecoder:
    """The network of the frozen pass, asked to write."""

    batching: Literal["shared"] = "shared"

    def __init__(self, frozen: FrozenModel, model: ModelConfig) -> None:
        """frozen: the whole network, of a family that shares tokens; model: what it was loaded from."""
        self._frozen = frozen
        self.world: World = frozen.world
        self.partitioned = frozen.partitioned
        with agreement(self.world):
            self.generation_config: Any = load_generation_config(model, load_config(model))

    def decoding(self, numbers: Sequence[int], prompts: Sequence[Sequence[int]]) -> Step:
        """As `Decoder`."""
        return TreeSteps(prompts, self._frozen.forward, self.world.device)
