"""Tensors of a checkpoint as a transformers network wants them: renamed, fused, in its types.

transformers' own rules say what becomes of what; they are applied target by target, and lists of experts
piece by piece, so that little more than the finished tensors is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from roma_ds.errors import UserError

PIECE_BYTES = 1 << 20
"""Of experts fused at once: larger pieces are no faster, and the allocator keeps the memory they took."""
Read = Callable[[str], torch.Tensor]


@dataclass
class Target:
    """A tensor of the network, and the local keys of the stored tensors that it is made from."""

    name: str
    sources: dict[str | None, list[str]] = field(default_factory=dict)
    """By the pattern of the rule that takes them, in order; None where a tensor is taken as it is."""


class Conversion:
    """transformers' rules for the checkpoints of `network`, which may be on the meta device."""

    def __init__(self, network: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(network)
        self.network = network
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def targets(self, keys: Sequence[str], wanted: Mapping[str, Any]) -> list[Target]:
        """What of `wanted` (tensors of the network by name) can be made from the stored tensors `keys`."""
        from transformers.core_model_loading import dot_natural_key, rename_source_key

        found: dict[str, Target] = {}
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = rename_source_key(key, self.renamings, self.converters)
            if name not in wanted and key in wanted:
                name, pattern = key, None
            if name in wanted:
                found.setdefault(name, Target(name)).sources.setdefault(pattern, []).append(key)
        return list(found.values())

    def names(self, target: Target) -> list[str]:
        """Tensors of the network that `target`'s sources give: more than one where a rule splits them."""
        for pattern in target.sources:
            if pattern is not None:
                outputs = self._rule(pattern).target_patterns
                return [target.name.replace(outputs[0], output) for output in outputs]
        return [target.name]

    def _rule(self, pattern: str) -> Any:
        return next(rule for rule in self.converters if pattern in rule.source_patterns)

    def convert(
        self, target: Target, read: Read, wanted: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all that `target`'s sources give, on the CPU, in the types of `wanted`.

        read: gives a stored tensor by its local key. Raises UserError where sources are not complete.
        """
        like = wanted[target.name]

        def typed(key: str) -> torch.Tensor:
            return read(key).to(like.dtype)

        patterns = [pattern for pattern in target.sources if pattern is not None]
        if not patterns:
            yield target.name, typed(target.sources[None][-1])
            return
        rule = self._rule(patterns[0])
        lists = {pattern: target.sources[pattern] for pattern in patterns}
        absent = set(rule.source_patterns) - set(patterns)
        if absent or len({len(keys) for keys in lists.values()}) > 1:
            raise UserError(
                f"the checkpoint does not have all tensors that {target.name} is made from: "
                + ", ".join(
                    f"{len(lists.get(pattern, ()))} of {pattern}" for pattern in rule.source_patterns
                ),
                "use a complete checkpoint that belongs to this config.json",
            )
        if not _piecewise(rule):
            yield from self._applied(rule, target, lists, typed)
            return
        count = len(lists[patterns[0]])
        if count != like.shape[0]:
            raise UserError(
                f"the checkpoint has {count} parts of {target.name}, the model needs {like.shape[0]}",
                "use a complete checkpoint that belongs to this config.json",
            )
        whole = torch.empty(like.shape, dtype=like.dtype)
        step = max(1, count * PIECE_BYTES // max(1, whole.nbytes))
        for start in range(0, count, step):
            some = {pattern: keys[start : start + step] for pattern, keys in lists.items()}
            for _, piece in self._applied(rule, target, some, typed):
                whole[start : start + step].copy_(piece)
        yield target.name, whole

    def _applied(
        self, rule: Any, target: Target, lists: Mapping[str, list[str]], typed: Read
    ) -> Iterator[tuple[str, torch.Tensor]]:
        rule = deepcopy(rule)
        for pattern, keys in lists.items():
            for key in keys:
                rule.add_tensor(target.name, key, pattern, typed(key))
        made = rule.convert(target.name, model=self.network, config=self.network.config)
        for name, value in made.items():
            yield name, value[0] if isinstance(value, list) else value


def _piecewise(rule: Any) -> bool:
    """Whether some experts at a time give the same as all at once: they are stacked, and joined across."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    first, *others = rule.operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(isinstance(other, Concatenate) and other.dim > 0 for other in others)
    )
