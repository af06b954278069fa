"""Attention of one new token a sequence, over keys and values that sequences share and those of their own.

Shapes: B sequences, H heads, h key heads of g heads each, d head size, e of values, S tokens of a shared run,
W tokens that a sequence has for itself, D places in a sequence that shared runs reach.
"""

from __future__ import annotations

from typing import Any

import torch

from roma_ds.network.products import sums_dtype
from roma_ds.sequences.tree_cache import TreeCache


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[n, a, b] times [n, b, c] in float32 or wider."""
    wide = sums_dtype(one)
    return torch.bmm(one.to(wide), other.to(wide))


def decoding_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: TreeCache,
    window: int | None,
    sinks: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """query [1, H, B, d], key and value [1, h, B, d] of the newest tokens, which are kept -> [B, H, e].

    A shared run is one product for all sequences that follow it. sinks: [H]; scaling: of the products of
    queries and keys, 1 / sqrt(d) where it is None.
    """
    own_keys, own_values, shared = cache.add(module, key, value)
    heads, sequences, size = query.shape[1:]
    groups = own_keys.shape[1]
    each, width, depth = heads // groups, own_keys.shape[2], cache.depth
    # By key head and sequence: what follows one run is one block of rows.
    asking = query[0].unflatten(0, (groups, each)).transpose(1, 2).contiguous()
    columns = depth + width + (sinks is not None)
    scores = query.new_empty(groups, sequences, each, columns, dtype=sums_dtype(query))
    for run, (keys, _) in zip(cache.runs, shared, strict=True):
        found = _product(asking[:, run.low : run.high].flatten(1, 2), keys.transpose(1, 2))
        scores[:, run.low : run.high, :, run.columns] = found.unflatten(1, (-1, each))
    by_row = asking.transpose(0, 1).flatten(0, 1)
    found = _product(by_row, own_keys.flatten(0, 1).transpose(1, 2))
    scores[..., depth : depth + width] = found.unflatten(0, (sequences, groups)).transpose(0, 1)
    scores.mul_(size**-0.5 if scaling is None else scaling)
    hidden = cache.hidden(window, query.device)[None, :, None]
    scores[..., : depth + width].masked_fill_(hidden, float("-inf"))
    if sinks is not None:
        scores[..., -1] = sinks.to(scores.dtype).reshape(groups, 1, each)
    shares = torch.softmax(scores, dim=-1).to(value.dtype)
    own = shares[..., depth : depth + width].transpose(0, 1).flatten(0, 1)
    output: torch.Tensor = _product(own, own_values.flatten(0, 1)).unflatten(0, (sequences, groups))
    for run, (_, values) in zip(cache.runs, shared, strict=True):
        part = shares[:, run.low : run.high, :, run.columns].flatten(1, 2)
        output[run.low : run.high] += _product(part, values).unflatten(1, (-1, each)).transpose(0, 1)
    return output.flatten(1, 2).to(value.dtype)
