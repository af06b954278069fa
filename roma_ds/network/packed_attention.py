"""Attention that keeps packed sequences apart, through transformers' attention interface.

Shapes: B sequences, T tokens in all, L tokens of the longest, R needed rows, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import nn

from roma_ds.network.decoding_attention import decoding_attention
from roma_ds.sequences.packing import Packing
from roma_ds.sequences.shared_attention import Sharing

PACKED_ATTENTION = "roma_ds_packed"
ROWS_ONLY = "roma_ds_rows_only"
"""Attribute of an attention module whose queries are wanted at the needed rows alone."""
SCORES = 2**20
"""Most products of a query and a key in one call on a CPU, or those of one sequence."""
Attend = Callable[..., torch.Tensor]
"""(query, key, value, mask) -> [n, queries, h, d]: of n sequences of the same length, without gaps."""


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


def _runs(packing: Packing, rows_only: bool, heads: int) -> Iterator[tuple[int, int, int]]:
    """(sequences, queries of each, keys of each), equal ones in a row together as far as SCORES allows."""
    counts = packing.row_counts if rows_only else packing.lengths
    for (queries, keys), equal in groupby(zip(counts, packing.lengths, strict=True)):
        left = len(list(equal))
        most = max(1, SCORES // (heads * queries * keys))
        while left:
            yield min(most, left), queries, keys
            left -= min(most, left)


def apart(
    attend: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    rows_only: bool,
) -> torch.Tensor:
    """A call for each length; nothing is padded. query: [1, h, T or R, d]."""
    runs = list(_runs(packing, rows_only, query.shape[1]))
    own = [number * queries for number, queries, _ in runs]
    seen = [number * keys for number, _, keys in runs]
    parts = zip(query.split(own, dim=2), key.split(seen, dim=2), value.split(seen, dim=2), strict=True)
    found, first = [], 0
    for (number, queries, keys), part in zip(runs, parts, strict=True):
        mask = packing.row_mask[first : first + number, :, :queries, :keys] if rows_only else None
        each = (item[0].unflatten(1, (number, -1)).transpose(0, 1) for item in part)
        found.append(attend(*each, mask).flatten(0, 1))
        first += number
    return torch.cat(found)


def _padded(values: torch.Tensor, slots: torch.Tensor, sequences: int, width: int) -> torch.Tensor:
    """[1, h, n, d] -> [sequences, h, width, d], zero where there is no token."""
    flat = values[0].transpose(0, 1)
    if flat.shape[0] != sequences * width:
        room = flat.new_zeros(sequences * width, *flat.shape[1:])
        flat = room.index_copy(0, slots, flat)
    return flat.reshape(sequences, width, *flat.shape[1:]).transpose(1, 2)


def together(
    attend: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    rows_only: bool,
) -> torch.Tensor:
    """All sequences in one call, padded to the longest. query: [1, h, T or R, d]."""
    sequences, longest = len(packing.lengths), max(packing.lengths)
    slots, width, mask = packing.slots, longest, None
    if rows_only:
        slots, width, mask = packing.row_slots, packing.row_mask.shape[2], packing.row_mask
    keys, values = (_padded(item, packing.slots, sequences, longest) for item in (key, value))
    padded = attend(_padded(query, slots, sequences, width), keys, values, mask)
    output = padded.reshape(-1, *padded.shape[2:])
    return output if output.shape[0] == query.shape[2] else output[slots]


def along_tree(
    attend: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sharing: Sharing,
    rows_only: bool,
    window: int | None,
) -> torch.Tensor:
    """Sequences that share tokens, a call for each few chunks of their tree. query: [1, h, T or R, d]."""
    calls, place = sharing.calls(rows_only, query.device)
    found = []
    for call in calls:
        parts = ((query, call.queries), (key, call.keys), (value, call.keys))
        each = [item[0][:, chosen].unflatten(1, (call.count, -1)).transpose(0, 1) for item, chosen in parts]
        mask = call.mask
        if mask is not None and window:
            near = call.query_positions[:, :, None] - call.key_positions[:, None] < window
            mask = mask & near[:, None]
        output = attend(*each, mask).flatten(0, 1)
        found.append(output if call.real is None else output[call.real])
    return torch.cat(found)[place]


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

    transformers' attention interface, and its scaled-dot-product implementation inside: length by length
    on a CPU, where padding costs more than calls, else padded and all at once. Where the module has the
    attribute `ROWS_ONLY`, rows that are not needed give 0. Where `packing.past` or `packing.cache` keeps
    earlier tokens, they are seen too.

    sliding_window: most keys that a query sees, where the module or its config's `layer_types` has one.
    s_aux: [h], attention sinks: what one more key without a value would score.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    window = sliding_window or _window(module)

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        longest = key.shape[2]
        # Of shared tokens the mask knows the window already.
        if window and window < longest and (mask is None or packing.sharing is None):
            mask = _within(window, _causal(longest, query.device) if mask is None else mask)
        if s_aux is not None:
            mask = _with_sinks(
                _causal(longest, query.device) if mask is None else mask, s_aux.to(query.dtype)
            )
            key, value = (nn.functional.pad(item, (0, 0, 0, 1)) for item in (key, value))
        found: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found

    if packing.cache is not None:
        if packing.cache.begun:
            scaling = options.get("scaling")
            found = decoding_attention(module, query, key, value, packing.cache, window, s_aux, scaling)
            return found[None], None
        packing.cache.keep(module, key, value)
    if packing.past is not None:
        key, value = packing.past.with_earlier(module, key, value)
        if packing.past.again is not None:
            return together(attend, query, key, value, packing, rows_only=True)[None], None
    rows_only = getattr(module, ROWS_ONLY, False)
    if rows_only:
        query = query[:, :, packing.rows]
    if packing.sharing is not None:
        output = along_tree(attend, query, key, value, packing.sharing, rows_only, window)
    else:
        way = apart if query.device.type == "cpu" else together
        output = way(attend, query, key, value, packing, rows_only)
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
