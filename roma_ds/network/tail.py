"""The end of every sequence of a batch, from the first token whose routing is read, run again and again.

A token sees those before it alone. Whatever is changed at the routing positions, what lies before them stays
as it is: it is run once, its keys and values are kept, and each further pass takes the few tokens behind.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from roma_ds.network.routed import RoutedLM
from roma_ds.sequences.batches import Batch
from roma_ds.sequences.packing import Past, pack


def tail_of(routed: RoutedLM, batch: Batch, device: torch.device) -> Batch:
    """Run `batch` once, without gradient, and return its tail as a batch of its own.

    A batch of a network that runs row by row is its own tail. Until the weights change, a tail gives what the
    whole batch would: logits at the same answer tokens, routing at the same positions. Its expert loads are
    of its own tokens.
    """
    if routed.layout.family.mixing == "rows":
        # Layers of other kinds keep no keys and values: all of it is run again.
        return batch
    lengths, past = batch.packing.lengths, Past()
    with torch.no_grad():
        routed(**replace(batch, packing=replace(batch.packing, past=past)).inputs(device))
    ends = torch.tensor(lengths).cumsum(0)
    firsts = batch.routing_positions.amin(dim=1)
    again = torch.cat([torch.arange(*span) for span in zip(firsts.tolist(), ends.tolist(), strict=True)])
    place = torch.full((batch.tokens,), -1, dtype=torch.long)
    place[again] = every = torch.arange(len(again))
    past.again = again.to(device)
    return replace(
        batch,
        input_ids=batch.input_ids[again],
        position_ids=batch.position_ids[again],
        packing=replace(pack(lengths, again), rows=every, row_of=every, past=past),
        routing_positions=place[batch.routing_positions],
        answer_position=place[batch.answer_position],
        entering=None if batch.entering is None else batch.entering[again],
    )
