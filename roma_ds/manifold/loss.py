"""The manifold term (equation 7) on live routing weights.

Shapes: B samples, k neighbours, M layers, E experts.
"""

from __future__ import annotations

import torch


def manifold_term(
    routing: torch.Tensor, target: torch.Tensor, spread: torch.Tensor, present: torch.Tensor, reduction: str
) -> torch.Tensor:
    """L_manifold per sample, float32 [B], with gradient through `routing` only.

    routing: live routing weights [B, M, E]; target: rbar [B, M, E]; spread: [B, M], the constant part;
    present: bool [B], False where a sample has no neighbour, which gives zero; reduction: `sum` or `mean`
    over layers.
    """
    per_layer = (routing - target).square().sum(dim=-1) + spread
    total = per_layer.sum(dim=-1) if reduction == "sum" else per_layer.mean(dim=-1)
    return torch.where(present, total, torch.zeros_like(total))


def manifold_by_pairs(
    routing: torch.Tensor, neighbours: torch.Tensor, weights: torch.Tensor, reduction: str
) -> torch.Tensor:
    """Equation 7 as it is written, float32 [B]: sum_j W_ij |r_i - r_j|^2; slower, for tests and reading.

    routing [B, M, E], neighbours [B, k, M, E], weights [B, k].
    """
    squared = (routing[:, None] - neighbours).square().sum(dim=-1)
    layers = squared.sum(dim=-1) if reduction == "sum" else squared.mean(dim=-1)
    return (weights * layers).sum(dim=-1)
