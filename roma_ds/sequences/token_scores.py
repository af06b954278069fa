"""How likely a network finds tokens, from logits over its vocabulary.

Shapes: C tokens, P rows of logits, V vocabulary.
"""

from __future__ import annotations

import torch

BLOCK = 64
"""Rows whose exponentials are held at once: a vocabulary is large."""


def token_scores(
    logits: torch.Tensor, ids: torch.Tensor, row: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, float32 [C] on the CPU: of the tokens `ids`, and of the best other token of each.

    logits: float32 [P, V]; ids: int64 [C]; row: int64 [C], the row of logits that predicts each token, by
    default rows in order. No row is copied.
    """
    totals, values, tokens = [], [], []
    for part in logits.split(BLOCK):
        best, places = part.topk(2, dim=-1)
        totals.append(part.logsumexp(dim=-1))
        values.append(best)
        tokens.append(places)
    total, best, places = torch.cat(totals), torch.cat(values), torch.cat(tokens)
    row = torch.arange(len(ids), device=ids.device) if row is None else row
    total, best, places = total[row], best[row], places[row]
    other = torch.where(places[:, 0] == ids, best[:, 1], best[:, 0])
    return (logits[row, ids] - total).cpu(), (other - total).cpu()
