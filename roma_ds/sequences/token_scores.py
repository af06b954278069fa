"""How likely a network finds tokens, from logits over its vocabulary.

Shapes: C tokens, V vocabulary.
"""

from __future__ import annotations

import torch


def token_scores(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, float32 [C] on the CPU: of the tokens `ids`, and of the best other token of each.

    logits: float32 [C, V]; ids: int64 [C]. No copy of [C, V] is made: a vocabulary is large.
    """
    total = logits.logsumexp(dim=-1)
    best, places = logits.topk(2, dim=-1)
    other = torch.where(places[:, 0] == ids, best[:, 1], best[:, 0])
    own = logits.gather(1, ids[:, None])[:, 0]
    return (own - total).cpu(), (other - total).cpu()
