"""Published models as networks without values, and their parameters counted without knowing a family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from roma_ds.families import published
from roma_ds.families.causal_lm import causal_lm_class
from roma_ds.families.published import PublishedModel

TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
"""Config attributes that may say how many experts a token goes to."""


def network(name: str) -> Any:
    """The causal LM of a published config on torch's meta device: shapes alone, in bfloat16.

    Raises UserError where there is no model of that name.
    """
    import torch

    config = published.config(name)
    with torch.device("meta"):
        return causal_lm_class(type(config))._from_config(config, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a sparse network; tied weights count once."""

    total: int
    """All of them."""
    routed: int
    """Those of the routed experts, which are stacked: weights of three dimensions, and their biases."""
    experts: int
    """Routed experts of a sparse layer."""
    top_k: int
    """Routed experts that a token goes to."""
    sparse: tuple[int, ...]
    """Numbers of the layers with routed experts."""
    embedding: int
    """Those of the token embedding."""
    tied: bool
    """Whether the head is the embedding."""

    def active(self, embedding: bool = True) -> int:
        """Those that one token meets: all but those of the experts that it does not go to.

        embedding: count the token embedding, of which a token reads one row; where the head is tied to it, it
        is counted either way.
        """
        met, left = divmod(self.routed * self.top_k, self.experts)
        assert left == 0, "experts of one model differ in size"
        return self.total - self.routed + met - (0 if embedding or self.tied else self.embedding)


def sizes(model: Any) -> Sizes:
    """Counted off a network as it is, a transformers causal LM; its config is asked for the top-k alone.

    Raises ValueError where it has no stacked experts, or layers with different numbers of them.
    """
    total = routed = 0
    counts: set[int] = set()
    sparse: set[int] = set()
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        owner = model.get_submodule(name.rpartition(".")[0])
        stacked = [weight for weight in owner.parameters(recurse=False) if weight.dim() == 3]
        # A convolution's weight has three dimensions too, of which one is 1: it works on each channel alone.
        if not stacked or 1 in stacked[0].shape:
            continue
        routed += prod(parameter.shape)
        counts.add(stacked[0].shape[0])
        layer = re.search(r"\.layers\.(\d+)\.", name)
        sparse |= {int(layer[1])} if layer else set()
    if len(counts) != 1:
        raise ValueError(f"the network has stacked experts of {sorted(counts)}, not of one number")
    chosen = (getattr(model.config, attribute, None) for attribute in TOP_K)
    embedding = model.get_input_embeddings().weight
    return Sizes(
        total=total,
        routed=routed,
        experts=counts.pop(),
        top_k=next(number for number in chosen if isinstance(number, int)),
        sparse=tuple(sorted(sparse)),
        embedding=embedding.numel(),
        tied=model.get_output_embeddings().weight is embedding,
    )


def as_stated(model: PublishedModel, found: Sizes) -> tuple[int, int]:
    """Total and active parameters, with and without what the publisher's two figures count.

    found: the sizes of the model's network.
    """
    total = found.total - (0 if model.embedding_is_in_total else found.embedding)
    active = found.active(model.embedding_is_active)
    return (
        total + sum(model.beside[part] for part in model.total_with),
        active + sum(model.beside[part] for part in model.active_with),
    )
