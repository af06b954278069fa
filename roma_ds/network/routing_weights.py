"""r: what the method calls the routing weights of a token."""

from __future__ import annotations

from typing import Any

import torch

from roma_ds.families import Family


def logits_in(family: Family, output: Any) -> Any:
    """The logits [.., rows] among what the module that makes them (`RouterSite.source`) returned."""
    alone = family.logits_from == "product" or family.logits_at is None
    return output if alone else output[family.logits_at]


def routing_weights(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """float32 [..., E] that sum to 1 over all routed experts, from a router's logits [..., E].

    scoring: `Family.scoring`. A softmax as in the paper; for routers that score by sigmoids or by the root of
    softplus, which the paper does not have, these divided by their sum (a choice). Neither knows of groups,
    correction biases or the top-k: those decide which experts run.
    """
    if scoring != "softmax":
        exact = logits.float()
        scores = torch.sigmoid(exact) if scoring == "sigmoid" else torch.nn.functional.softplus(exact).sqrt()
        return scores / scores.sum(dim=-1, keepdim=True)
    return torch.softmax(logits.float(), dim=-1)
