"""Parameters cut over the ranks by ZeRO-3 while they are made, each rank knowing its own share alone."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from roma_ds.families import Family


class Partition:
    """How ZeRO-3 cuts each parameter: flat, padded to a multiple of the ranks, one share a rank."""

    def __init__(self, zero3: dict[str, Any]) -> None:
        """zero3: a resolved DeepSpeed config of stage 3. A collective."""
        import deepspeed
        from deepspeed.utils import groups

        cut_twice = zero3["zero_optimization"].get("zero_hpz_partition_size", 1) > 1
        # ZeRO++'s groups of ranks are made once in a process; a second Init that made them again would fail.
        group = groups._get_zero_param_intra_parallel_group() if cut_twice else None
        self._init: Any = deepspeed.zero.Init(
            module=nn.Module(), config_dict_or_path=deepcopy(zero3), zero_param_parallel_group=group
        )

    def spans(self, size: int) -> list[tuple[int, int]]:
        """(start, stop) of the values that this rank keeps of a flattened parameter with `size` of them."""
        init = self._init
        shares = [(init.rank, init.dp_world_size)]
        if init.zero_param_process_group is not None:
            # ZeRO++ keeps a second, larger share, for gathering within a group of ranks.
            shares.append((init.rank_in_group, init.num_ranks_in_param_group))
        padded = -(-size // init.dp_world_size) * init.dp_world_size
        found = []
        for rank, ranks in shares:
            share = padded // ranks
            found.append((min(size, rank * share), min(size, (rank + 1) * share)))
        return [(start, stop) for start, stop in dict.fromkeys(found) if start < stop]

    def take(self, parameter: nn.Parameter) -> None:
        """Keep this rank's share of a parameter and free the rest, of which no value is looked at.

        What deepspeed.zero.Init does with a parameter, without sending rank 0's values to all. No collective.
        """
        self._init._convert_to_deepspeed_param(parameter)
        partitioned: Any = parameter
        with torch.no_grad():
            partitioned.partition()


def gather_whole(layers: Iterable[nn.Module], family: Family) -> None:
    """Mark the modules whose weights ZeRO-3 gathers at once, in decoder layers.

    It fetches module by module, in an order that all ranks must share. What mixes tokens row by row may leave
    modules out where sequences are short: of such families all parts of a layer are marked that hold no
    router.
    """
    from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

    for layer in layers:
        # A dense layer has no experts.
        modules = dict(layer.named_modules())
        marked = [modules[path] for path in family.gathered_whole if path in modules]
        for child in layer.children() if family.mixing == "rows" else ():
            parts = child if isinstance(child, nn.ModuleList) else (child,)
            marked += [part for part in parts if not any(map(family.is_router, part.modules()))]
        for module in marked:
            set_z3_leaf_module(module, True)
