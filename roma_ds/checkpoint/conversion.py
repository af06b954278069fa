"""Tensors of a checkpoint as a transformers network wants them: renamed, fused, in its types.

transformers' own rules say what becomes of what; they are applied target by target, and lists of experts
piece by piece, so that little more than what is asked for is read and in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from roma_ds.checkpoint.stored_tensor import Placed
from roma_ds.families.composite import TextNetwork
from roma_ds.families.unread_keys import UnreadKeys

PIECE_BYTES = 1 << 20
"""Of experts fused at once: larger pieces are no faster, and the allocator keeps the memory they took."""
READ_BYTES = 1 << 22
"""Of a tensor read at once that is taken as it is."""
OTHER_PART = "other part: "
Read = Callable[[str], torch.Tensor]
Piece = tuple[str, int, torch.Tensor]
"""Name of a tensor of the network, number of the first value in the flattened tensor, values."""


class Stored(Protocol):
    """Stored tensors by checkpoint key."""

    def place(self, key: str) -> Placed:
        """Type and shape of the tensor."""

    def read(self, key: str) -> torch.Tensor:
        """The tensor, in its stored type."""

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` - 1 of the flattened tensor."""


@dataclass
class Target:
    """A tensor of the network, and the keys of the stored tensors that it is made from."""

    name: str
    sources: dict[str | None, list[str]] = field(default_factory=dict)
    """By the pattern of the rule that takes them, in order; None where a tensor is taken as it is."""


class Conversion:
    """transformers' rules for the checkpoints of a causal LM, or of a network that it is a part of."""

    def __init__(self, network: Any, within: TextNetwork | None = None) -> None:
        """network: the causal LM, which may be on the meta device. within: where it lies in the network of
        its checkpoint, where that has other parts; rules and tensors are then those of the whole one."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._within = within
        self.network = network if within is None else within.network
        rules = get_model_conversion_mapping(self.network)
        self._prefix = self.network.base_model_prefix
        self._names = self.network.state_dict(keep_vars=True)
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._unread = UnreadKeys(network, within)
        self._found: dict[str, tuple[str, str | None]] = {}

    def name_of(self, key: str) -> str:
        """Name in the causal LM of what a stored tensor becomes, or becomes a part of.

        For tensors of other parts of a checkpoint their name in the whole network, behind `OTHER_PART`.
        """
        return self._inner(self._renamed(key)[0])

    def strays(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys`, none of which the causal LM has a place for, that transformers does not leave too.

        It leaves other parts of a checkpoint, modules that predict further tokens, and what a class names.
        """
        outer = {key: self._renamed(key)[0] for key in keys}
        inner = self._within.inner if self._within is not None else str
        found = self._unread.strays({(name, inner(name)) for name in outer.values()})
        return sorted(key for key, name in outer.items() if name in found)

    def _inner(self, name: str) -> str:
        if self._within is None:
            return name
        return self._within.inner(name) or f"{OTHER_PART}{name}"

    def _outer(self, name: str) -> str:
        return name if self._within is None else self._within.outer(name)

    def _renamed(self, key: str) -> tuple[str, str | None]:
        """Name in the network that the rules are of, and the source pattern of a rule that makes it."""
        from transformers.core_model_loading import rename_source_key

        if key not in self._found:
            found: tuple[str, str | None] = rename_source_key(
                key, self.renamings, self.converters, self._prefix, self._names
            )
            if found[0] not in self._names and key in self._names:
                found = (key, None)
            self._found[key] = found
        return self._found[key]

    def targets(self, keys: Sequence[str], wanted: Mapping[str, Any]) -> list[Target]:
        """What of `wanted` (tensors of the network by name) can be made from the stored tensors `keys`."""
        from transformers.core_model_loading import dot_natural_key

        found: dict[str, Target] = {}
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = self._renamed(key)
            name = self._inner(name)
            if name in wanted:
                found.setdefault(name, Target(name)).sources.setdefault(pattern, []).append(key)
        return list(found.values())

    def names(self, target: Target) -> list[str]:
        """Tensors of the network that `target`'s sources give: more than one where a rule splits them."""
        for pattern in target.sources:
            if pattern is not None:
                outputs, name = self._rule(pattern).target_patterns, self._outer(target.name)
                return [self._inner(name.replace(outputs[0], output)) for output in outputs]
        return [target.name]

    def below(self, target: Target) -> list[list[str]] | None:
        """Keys of the weights that lie one below the other in each expert of `target`, each list by expert.

        A single key where all experts lie in one tensor. None where they are made in another way.
        """
        rule, lists = self._made_by(target)
        if rule is None:
            return [[target.sources[None][-1]]]
        if not _piecewise(rule) or any(other.dim != 1 for other in rule.operations[1:]):
            return None
        return [lists[pattern] for pattern in rule.source_patterns if pattern in lists]

    def _rule(self, pattern: str) -> Any:
        return next(rule for rule in self.converters if pattern in rule.source_patterns)

    def problem(self, target: Target, stored: Stored, wanted: Mapping[str, torch.Tensor]) -> str | None:
        """What keeps `target` from being made as `wanted` has it, in words; no value is read."""
        like, (rule, lists) = wanted[target.name], self._made_by(target)
        kinds = {stored.place(key).dtype for keys in target.sources.values() for key in keys}
        if like.is_floating_point() and not all(kind.is_floating_point for kind in kinds):
            return f"{target.name} is stored in whole numbers"
        if rule is None:
            shape = stored.place(target.sources[None][-1]).shape
            return _unlike(target.name, shape, like)
        counts = {pattern: len(lists.get(pattern, ())) for pattern in rule.source_patterns}
        if len(set(counts.values())) > 1:
            parts = ", ".join(f"{count} of {pattern}" for pattern, count in counts.items())
            return f"{target.name} is made from {parts}"
        experts = counts[rule.source_patterns[0]]
        if _piecewise(rule) and experts != like.shape[0]:
            return f"{target.name} has {experts} experts, the config says {like.shape[0]}"

        def empty(key: str) -> torch.Tensor:
            return torch.empty(stored.place(key).shape, dtype=like.dtype, device="meta")

        try:
            made = dict(self._applied(rule, target, lists, empty))
        except (RuntimeError, ValueError, IndexError) as error:
            return f"{target.name} cannot be made from its parts: {str(error).splitlines()[0]}"
        found = (_unlike(name, tuple(made[name].shape), wanted[name]) for name in made if name in wanted)
        return next((text for text in found if text is not None), None)

    def pieces(
        self,
        target: Target,
        stored: Stored,
        wanted: Mapping[str, torch.Tensor],
        spans: Sequence[tuple[int, int]],
    ) -> Iterator[Piece]:
        """What `target`'s sources give, on the CPU, in the types of `wanted`.

        spans: (start, stop) of what is needed of the flattened target, which the pieces cover. Experts that
        are fused come whole, and all of what no other rule can make in parts.
        """
        like, (rule, lists) = wanted[target.name], self._made_by(target)
        if rule is None:
            key = target.sources[None][-1]
            grain = stored.place(key).grain
            step = max(1, READ_BYTES // like.itemsize // grain) * grain
            for start, stop in spans:
                while start < stop:
                    # Up to where what is read together ends.
                    end = min((start + step) // grain * grain, stop)
                    yield target.name, start, stored.read_flat(key, start, end).to(like.dtype)
                    start = end
            return

        def typed(key: str) -> torch.Tensor:
            return stored.read(key).to(like.dtype)

        if not _piecewise(rule):
            for name, value in self._applied(rule, target, lists, typed):
                yield name, 0, value.reshape(-1)
            return
        expert = like[0].numel()
        step = max(1, PIECE_BYTES // max(1, expert * like.itemsize))
        for start, stop in spans:
            behind = -(-stop // expert)
            for first in range(start // expert, behind, step):
                last = min(first + step, behind)
                some = {pattern: keys[first:last] for pattern, keys in lists.items()}
                for _, piece in self._applied(rule, target, some, typed):
                    yield target.name, first * expert, piece.reshape(-1)

    def _made_by(self, target: Target) -> tuple[Any, dict[str, list[str]]]:
        """The rule that makes `target`, None where it is taken as it is, and its keys by pattern."""
        lists = {pattern: keys for pattern, keys in target.sources.items() if pattern is not None}
        return (self._rule(next(iter(lists))) if lists else None), lists

    def _applied(
        self, rule: Any, target: Target, lists: Mapping[str, list[str]], typed: Read
    ) -> Iterator[tuple[str, torch.Tensor]]:
        rule, outer = deepcopy(rule), self._outer(target.name)
        for pattern, keys in lists.items():
            for key in keys:
                rule.add_tensor(outer, key, pattern, typed(key))
        made = rule.convert(outer, model=self.network, config=self.network.config)
        for name, value in made.items():
            yield self._inner(name), value[0] if isinstance(value, list) else value


def _unlike(name: str, shape: tuple[int, ...], like: torch.Tensor) -> str | None:
    wanted = tuple(like.shape)
    return None if shape == wanted else f"{name} has shape {shape}, the config says {wanted}"


def _piecewise(rule: Any) -> bool:
    """Whether some experts at a time give the same as all at once: they are stacked, and joined across."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    first, *others = rule.operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(isinstance(other, Concatenate) and other.dim > 0 for other in others)
    )
