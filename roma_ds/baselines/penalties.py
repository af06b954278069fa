"""Regularisers of the routing weights that know nothing of other samples: rivals of the manifold term.

The paper compares with L1, L2 and entropy and does not say of what. On r itself L1 is always 1 (a softmax),
so L1 and L2 here are of the centred logits, which r determines: z_e - mean(z) = log r_e - mean(log r).
Shapes: B samples, M layers, E experts.
"""

from __future__ import annotations

import torch

LEAST = 1e-12


def centred_logits(routing: torch.Tensor) -> torch.Tensor:
    """[B, M, E], the router's logits up to a constant per layer, from its softmax r [B, M, E]."""
    logs = routing.clamp_min(LEAST).log()
    return logs - logs.mean(dim=-1, keepdim=True)


def l1_penalty(routing: torch.Tensor) -> torch.Tensor:
    """float32 [B]: mean absolute centred logit, summed over layers."""
    return centred_logits(routing).abs().mean(dim=-1).sum(dim=-1)


def l2_penalty(routing: torch.Tensor) -> torch.Tensor:
    """float32 [B]: mean squared centred logit, summed over layers."""
    return centred_logits(routing).square().mean(dim=-1).sum(dim=-1)


def entropy_penalty(routing: torch.Tensor) -> torch.Tensor:
    """float32 [B]: entropy of r in nats, summed over layers; routing becomes more decided."""
    entropy: torch.Tensor = torch.special.entr(routing.clamp_min(LEAST)).sum(dim=-1).sum(dim=-1)
    return entropy
