"""Sequences laid one after the other without padding, and the attention that keeps them apart.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

PACKED_ATTENTION = "roma_ds_packed"
ROWS_ONLY = "roma_ds_rows_only"
"""Attribute of an attention module whose queries are wanted at the needed rows alone."""


@dataclass(frozen=True)
class Packing:
    """Where each of T tokens belongs, and which of them are needed after the last layer."""

    lengths: tuple[int, ...]
    slots: torch.Tensor
    """int64 [T], the token's place in a padded [B * L]"""
    rows: torch.Tensor
    """int64 [R], ascending: the tokens whose last hidden state or last routing is read"""
    row_slots: torch.Tensor
    """int64 [R], the needed row's place in a padded [B * most needed rows of a sequence]"""
    row_of: torch.Tensor
    """int64 [T], the token's number among `rows`, -1 where it is not needed"""
    row_mask: torch.Tensor
    """bool [B, 1, most needed rows, L], which keys a needed row sees"""

    def to(self, device: torch.device) -> Packing:
        """The same on `device`."""
        names = ("slots", "rows", "row_slots", "row_of", "row_mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(lengths: Sequence[int], needed: torch.Tensor) -> Packing:
    """The packing of sequences of `lengths` tokens; `needed`: int64 indices into T, in any order."""
    longest, total = max(lengths), sum(lengths)
    sizes = torch.tensor(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    starts = sizes.cumsum(0) - sizes
    position = torch.arange(total) - starts[sequence]
    rows = torch.unique(needed)
    counts = torch.bincount(sequence[rows], minlength=len(lengths))
    most = int(counts.max())
    turn = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[sequence[rows]]
    row_slots = sequence[rows] * most + turn
    row_of = torch.full((total,), -1, dtype=torch.long)
    row_of[rows] = torch.arange(len(rows))
    # Padded rows see the first key: a row that sees none would be NaN.
    last_seen = torch.zeros(len(lengths) * most, dtype=torch.long)
    last_seen[row_slots] = position[rows]
    mask = torch.arange(longest) <= last_seen.reshape(len(lengths), 1, most, 1)
    return Packing(tuple(lengths), sequence * longest + position, rows, row_slots, row_of, mask)


def _padded(values: torch.Tensor, slots: torch.Tensor, sequences: int, width: int) -> torch.Tensor:
    """[1, h, n, d] -> [sequences, h, width, d], zero where there is no token."""
    flat = values[0].transpose(0, 1)
    if flat.shape[0] != sequences * width:
        room = flat.new_zeros(sequences * width, *flat.shape[1:])
        flat = room.index_copy(0, slots, flat)
    return flat.reshape(sequences, width, *flat.shape[1:]).transpose(1, 2)


def _causal(length: int, device: torch.device) -> torch.Tensor:
    """bool [1, 1, length, length], which keys a query sees."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def _window(module: Any) -> int | None:
    """The window of an attention whose class leaves it to the mask that transformers would build."""
    types = getattr(module.config, "layer_types", None)
    sliding = types is not None and types[module.layer_idx] == "sliding_attention"
    return getattr(module.config, "sliding_window", None) if sliding else None


def _within(window: int, mask: torch.Tensor) -> torch.Tensor:
    """`mask` [..., queries, keys], where a query sees all keys to its own, for the last `window` alone."""
    own = mask.sum(dim=-1, keepdim=True) - 1
    return mask & (torch.arange(mask.shape[-1], device=mask.device) > own - window)


def _with_sinks(mask: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """bool [n, 1, queries, keys] and sinks [h] as one term of scores [n, h, queries, keys + 1]; n: B or 1."""
    term = torch.zeros(mask.shape, dtype=sinks.dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    sequences, _, queries, _ = mask.shape
    last = sinks[None, :, None, None].expand(sequences, -1, queries, 1)
    return torch.cat((term.expand(-1, len(sinks), -1, -1), last), dim=-1)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed sequence; query, key, value [1, h, T, d] -> [1, T, h, d].

    transformers' attention interface, and its scaled-dot-product implementation inside. Only the score
    product is padded. Where the module has the attribute `ROWS_ONLY`, rows that are not needed give 0.

    sliding_window: most keys that a query sees, where the module or its config's `layer_types` has one.
    s_aux: [h], attention sinks: what one more key without a value would score.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    sequences, longest = len(packing.lengths), max(packing.lengths)
    slots, width, mask = packing.slots, longest, None
    rows_only = getattr(module, ROWS_ONLY, False)
    if rows_only:
        slots, width, mask = packing.row_slots, packing.row_mask.shape[2], packing.row_mask
        query = query[:, :, packing.rows]
    keys, values = (_padded(item, packing.slots, sequences, longest) for item in (key, value))
    window = sliding_window or _window(module)
    if window and window < longest:
        mask = _within(window, _causal(longest, query.device) if mask is None else mask)
    if s_aux is not None:
        mask = _with_sinks(_causal(longest, query.device) if mask is None else mask, s_aux.to(query.dtype))
        keys, values = (nn.functional.pad(item, (0, 0, 0, 1)) for item in (keys, values))
    padded, _ = sdpa_attention_forward(
        module, _padded(query, slots, sequences, width), keys, values, mask, **options
    )
    output = padded.reshape(-1, *padded.shape[2:])
    if output.shape[0] != query.shape[2]:
        output = output[slots]
    if rows_only:
        room = output.new_zeros(key.shape[2], *output.shape[1:])
        output = room.index_copy(0, packing.rows, output)
    return output[None], None


def use_packed_attention(network: Any) -> None:
    """Let a transformers model attend within packed sequences; its forward then takes `packing`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
    # A name without a mask function makes transformers build no mask.
    network.config._attn_implementation = PACKED_ATTENTION
