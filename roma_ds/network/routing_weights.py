"""r: what the method calls the routing weights of a token."""

from __future__ import annotations

import torch


def routing_weights(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """float32 [..., E] that sum to 1 over all routed experts, from a router's logits [..., E].

    scoring: `Family.scoring`. A softmax as in the paper; for routers that score by sigmoids, which the paper
    does not have, these divided by their sum (a choice). Neither knows of groups, correction biases or the
    top-k: those decide which experts run.
    """
    if scoring == "sigmoid":
        scores = torch.sigmoid(logits.float())
        return scores / scores.sum(dim=-1, keepdim=True)
    return torch.softmax(logits.float(), dim=-1)
