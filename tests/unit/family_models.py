"""A tiny checkpoint of every family, and what its routers give, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from roma_ds.backbone.encoding import Encoded
from roma_ds.families import FAMILIES, detect
from roma_ds.testing.tiny_models import save_tiny

MODEL_TYPES = [family.model_types[0] for family in FAMILIES]
SEQUENCES = [
    Encoded(0, (5, 6, 7, 8, 9, 10, 11, 50, 51), (12,)),
    Encoded(1, (20, 21), (22, 23, 24)),
    Encoded(2, (30,), (31,)),
    Encoded(3, (40, 41, 42, 43), (44, 45)),
]


@cache
def checkpoint(model_type: str) -> Path:
    """Written once a process; not to be changed."""
    return save_tiny(Path(mkdtemp()) / model_type, model_type, seed=3)


def read(sequence: Encoded) -> list[int]:
    """The tokens that a network reads of it."""
    return [*sequence.prompt, *sequence.continuation[:-1]]


class Reference:
    """The stock model on right-padded sequences: logits [B, L, V] and r [B, L, M, E] by hand."""

    def __init__(self, stock: Any, sequences: Sequence[Encoded]) -> None:
        layout = detect(stock)
        inputs: list[torch.Tensor] = []
        hooks = [
            stock.get_submodule(site.module).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            for site in layout.sites
        ]
        longest = max(sequence.length for sequence in sequences)
        rows = [read(sequence) + [0] * (longest - sequence.length) for sequence in sequences]
        mask = [[int(place < sequence.length) for place in range(longest)] for sequence in sequences]
        with torch.no_grad():
            self.logits = stock(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
        for hook in hooks:
            hook.remove()
        found = []
        for site, hidden in zip(layout.sites, inputs, strict=True):
            router = stock.get_submodule(site.module)
            product = hidden.reshape(len(sequences), longest, -1).double() @ router.weight.double().T
            if "bias" in layout.family.frozen_router_parts:
                product = product + router.bias.double()
            if layout.family.scoring == "sigmoid":
                scores = 1 / (1 + (-product).exp())
            else:
                scores = (product - product.amax(dim=-1, keepdim=True)).exp()
            found.append(scores / scores.sum(dim=-1, keepdim=True))
        self.routing = torch.stack(found, dim=2).float().detach()
