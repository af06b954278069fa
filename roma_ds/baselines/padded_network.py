"""A network that takes padded ids, asked what a packed batch asks.

Shapes: B sequences, L tokens of the longest, A predicted tokens, V vocabulary, M layers read, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from roma_ds.families import detect
from roma_ds.network.routing_weights import logits_in, routing_weights
from roma_ds.sequences.batches import Batch


class PaddedNetwork:
    """A model by the library's own forward. Padding is on the right, so that positions and what a real token
    sees are those of the sequence alone."""

    def __init__(
        self, model: Any, network: Any, layers: tuple[int, ...], added: int, device: torch.device
    ) -> None:
        """model: what is called; network: the causal LM in it.

        added: positions that the model puts before every sequence.
        """
        self.model, self.layers, self.added, self.device = model, layers, added, device
        layout = detect(network)
        self._family, self._entries = layout.family, layout.experts
        self._logits: dict[int, torch.Tensor] = {}
        for site in layout.sites:
            if site.layer in layers:
                network.get_submodule(site.source).register_forward_hook(self._recorder(site.layer))

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._logits[layer] = logits_in(self._family, output).detach()[..., : self._entries]

        return record

    def read(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits float32 [A, V] at the answers and routing weights float32 [B, M, E], these detached."""
        count, longest = len(batch.packing.lengths), max(batch.packing.lengths)
        slots = batch.packing.slots
        ids = torch.zeros(count * longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        ids[slots], mask[slots] = batch.input_ids, 1
        shape = (count, longest)
        asked = slots[batch.answer_position]
        # A head's product at every position would be most of the work of a small model with many tokens.
        kept = torch.unique(asked % longest)
        logits = self.model(
            input_ids=ids.view(shape).to(self.device),
            attention_mask=mask.view(shape).to(self.device),
            use_cache=False,
            logits_to_keep=(self.added + kept).to(self.device),
        ).logits
        answers = logits[
            (asked // longest).to(self.device), torch.searchsorted(kept, asked % longest).to(self.device)
        ]
        read = slots[batch.routing_positions].to(self.device)
        shares = batch.routing_weights[..., None].to(self.device)
        routing = [
            (
                routing_weights(self._own_tokens(self._logits[layer], shape)[read], self._family.scoring)
                * shares
            )
            for layer in self.layers
        ]
        self._logits.clear()
        return answers.float(), torch.stack([one.sum(dim=1) for one in routing], dim=1)

    def _own_tokens(self, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """[B * L, n] without the added positions, from [B, added + L, n] or the same flattened."""
        width = values.shape[-1]
        each = values.reshape(shape[0], self.added + shape[1], width)
        return each[:, self.added :].reshape(-1, width)
