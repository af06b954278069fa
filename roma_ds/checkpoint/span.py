"""Part of a network: some decoder layers, with or without embedding and head, and nothing else in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.checkpoint.absent import leave_out
from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.conversion import Target
from roma_ds.checkpoint.load_report import LoadReport
from roma_ds.checkpoint.loading import load_config, memory_faults
from roma_ds.checkpoint.partition import Partition, gather_whole
from roma_ds.checkpoint.skeleton import blank_network, initial_values
from roma_ds.checkpoint.stored.kept_experts import DecodedRoom, KeptExperts, kept_experts, runs_by_interface
from roma_ds.checkpoint.stored.refusals import none_kept, not_finite
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.families import Family, family_of
from roma_ds.families.config_values import sizes_in
from roma_ds.progress import Progress

MB = 1_000_000
OTHERS = "others"
SHOWN_BYTES = 256 * MB
"""A smaller network is loaded without a progress line."""


@dataclass(frozen=True)
class Span:
    """Decoder layers `first` to `last` - 1 of a model."""

    first: int
    last: int
    embedding: bool
    """Whether the token embedding belongs to it."""
    head: bool
    """Whether the final norm and the product that gives logits belong to it."""

    @staticmethod
    def suffix(first: int, depth: int) -> Span:
        """From layer `first` to the logits of a model with `depth` layers; from 0 it is the whole model."""
        return Span(first, depth, embedding=first == 0, head=True)


def skeleton(model: ModelConfig, span: Span | None = None, config: Any = None) -> Any:
    """The causal LM, or a span of it, without weights: parameters on the meta device, buffers computed.

    Layers keep their numbers: for those outside the span, and for an embedding that is not in it, stand
    modules without weights. config: of the whole model, where it is known. Raises as `blank_network`, and
    UserError where no part of such a model can be run, or not with weights of this type.
    """
    config = config or load_config(model)
    family = family_of(config)
    family.require_type(model.dtype)
    if span is not None and span != Span.suffix(0, family.depth(config)):
        family.require_parts()
    network = blank_network(model, config)
    if span is not None:
        layers = range(span.first, span.last)
        leave_out(network, family, layers, span.embedding, span.head, getattr(torch, model.dtype))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.config.use_cache = False
    network.config.output_router_logits = False
    return network.eval()


def total_parameters(model: ModelConfig) -> int:
    """Number of values in all weights of the whole model; no weight is read."""
    return sum(parameter.numel() for parameter in skeleton(model).parameters())


def load_span(
    model: ModelConfig,
    span: Span,
    zero3: dict[str, Any] | None,
    device: torch.device,
    world: World | None = None,
    stored: bool = False,
) -> Any:
    """A transformers causal LM of the span alone, frozen, in eval mode, under the whole model's numbers.

    stored: experts that can stay as they are stored do (`SpanLoader`). With `zero3`, a resolved DeepSpeed
    config of stage 3, the network is partitioned over the ranks while it is read, and each rank reads its own
    share alone. A collective where `world` is given: an error on one
    rank is raised on every rank.

    Raises UserError when tensors are missing, have other shapes or cannot be read, EnvironmentFault when
    memory does not suffice.
    """
    partition = Partition(zero3) if zero3 is not None else None
    with agreement(world) if world is not None else nullcontext():
        loader = SpanLoader(model, span, device, stored=stored)
        sizes = {part: loader.size(part) for part in loader.parts()}
        shown = (world is None or world.is_first) and sum(sizes.values()) >= SHOWN_BYTES
        with Progress(sum(sizes.values()) // MB, "load", "MB", enabled=shown) as progress:
            for part, size in sizes.items():
                loader.fill(part, partition)
                progress.advance(size // MB)
    if zero3 is not None:
        layers = loader.network.get_submodule(loader.family.layers)
        gather_whole(layers[span.first : span.last], loader.family)
    return loader.network


class SpanLoader:
    """A span whose weights are still to be read: made in the main thread, filled in any.

    Making the network sets torch's default type for a moment, which is that of all threads; filling does not.
    """

    def __init__(
        self,
        model: ModelConfig,
        span: Span,
        device: torch.device,
        files: CheckpointFiles | None = None,
        stored: bool = False,
    ) -> None:
        """files: of the same model, to open them once for several spans. Raises as `load_span` does.

        stored: where a parameter of fused experts can be kept as it is stored, it is uint8 [E, bytes], and
        its module has what decodes it under its name in a dict `kept_experts`.
        """
        self.model, self.span, self.device = model, span, device
        self.files = files or CheckpointFiles(model)
        self.network = skeleton(model, span, self.files.config)
        self.family: Family = family_of(self.network.config)
        self.conversion = self.files.conversion
        self._stored = self.files.by_part(lambda key: self._part_of(self.conversion.name_of(key)))
        self.report().refuse(model.path, sizes_in(self.files.config))
        self.kept: dict[str, KeptExperts] = {}
        """By name of the parameter."""
        if stored:
            self._keep_experts()
        for module in self.network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)

    def _keep_experts(self) -> None:
        room = DecodedRoom(int(self.model.decoded_cache * 2**30))
        for part in self.parts():
            wanted = self._wanted(part)
            for target in self._targets(part, wanted):
                path, _, name = target.name.rpartition(".")
                module, like = self.network.get_submodule(path), wanted[target.name]
                lists = (
                    self.conversion.below(target) if like.ndim == 3 and runs_by_interface(module) else None
                )
                found = kept_experts(lists, like, self.files.decoding) if lists else None
                if found is not None:
                    self.kept[target.name] = found
                    found.put(module, name, room)
        if self.model.frozen == "stored" and not self.kept:
            raise none_kept(self.model.path)

    def load(self) -> Any:
        """The network with all its weights. Raises as `load_span` does."""
        for part in self.parts():
            self.fill(part)
        return self.network

    def parts(self) -> list[str]:
        """What to fill: paths of modules, each small enough to be in memory whole, and OTHERS.

        OTHERS are all weights outside the layers but the embedding and the head.
        """
        layers = [f"{self.family.layers}.{number}" for number in range(self.span.first, self.span.last)]
        return [
            *([self.family.embedding] if self.span.embedding else []),
            OTHERS,
            *layers,
            *([self.family.head] if self.span.head else []),
        ]

    def _part_of(self, name: str) -> str:
        """The part that a tensor of the network belongs to."""
        family = self.family
        if name.startswith(f"{family.layers}."):
            return ".".join(name.split(".")[: family.layers.count(".") + 2])
        return next((end for end in (family.embedding, family.head) if name.startswith(f"{end}.")), OTHERS)

    def _keys(self, part: str) -> list[str]:
        """Keys of the stored tensors that a part is made of; a tied end is made of the other one's."""
        found = self._stored.get(part, [])
        ends = (self.family.embedding, self.family.head)
        if not found and part in ends and getattr(self.network.config, "tie_word_embeddings", False):
            return self._stored.get(ends[1 - ends.index(part)], [])
        return found

    def _wanted(self, part: str) -> dict[str, torch.Tensor]:
        if part != OTHERS:
            module = self.network.get_submodule(part)
            return {f"{part}.{name}": values for name, values in module.state_dict(keep_vars=True).items()}
        every = self.network.state_dict(keep_vars=True)
        return {name: values for name, values in every.items() if self._part_of(name) == OTHERS}

    def _targets(self, part: str, wanted: dict[str, torch.Tensor]) -> list[Target]:
        targets = self.conversion.targets(self._keys(part), wanted)
        ends = (self.family.embedding, self.family.head)
        if targets or part not in ends:
            return targets
        # The name of a tied end is that of the other one.
        (name,) = wanted
        return [Target(name, {None: list(self._keys(part))})] if self._keys(part) else []

    def size(self, part: str) -> int:
        """Bytes of a part in memory, whole."""
        return sum(tensor.nbytes for tensor in self._wanted(part).values())

    def report(self) -> LoadReport:
        """What keeps this span from being made of the files, and for a whole model what is left of them."""
        missing: list[str] = []
        unfit: list[str] = []
        used: set[str] = set()
        for part in self.parts():
            wanted = self._wanted(part)
            targets = self._targets(part, wanted)
            found = {name for target in targets for name in self.conversion.names(target)}
            missing.extend(sorted(wanted.keys() - found - self._optional(wanted)))
            problems = (self.conversion.problem(target, self.files, wanted) for target in targets)
            unfit.extend(text for text in problems if text is not None)
            used.update(key for target in targets for keys in target.sources.values() for key in keys)
        return LoadReport(tuple(missing), tuple(unfit), tuple(self._left(used)))

    def _left(self, used: set[str]) -> list[str]:
        """Keys that nothing in the whole model takes, but for those that its class is known to leave."""
        if self.span != Span.suffix(0, self.family.depth(self.files.config)):
            return []
        return self.conversion.strays(key for key in self.files.keys if key not in used)

    def fill(self, part: str, partition: Partition | None = None) -> None:
        """Give a part its weights, or with `partition` this rank's share of them."""
        if self._is_tied(part):
            self._put(f"{part}.weight", self.network.get_submodule(self.family.embedding).weight)
            return
        wanted = self._wanted(part)
        left = self._optional(wanted)
        with memory_faults(self.model), torch.no_grad():
            for target in self._targets(part, wanted):
                left -= set(self.conversion.names(target))
                self._make(target, wanted, partition)
            for name in sorted(left):
                self._put(name, initial_values(self.network, name, self.device))

    def _make(
        self,
        target: Target,
        wanted: dict[str, torch.Tensor],
        partition: Partition | None,
    ) -> None:
        """Put in place what a target's sources give."""
        if target.name in self.kept:
            self._make_kept(target.name, wanted[target.name], partition)
            return
        made, spans = {}, {}
        for name in self.conversion.names(target):
            like = wanted[name]
            # Where a rank fills only its share on a CPU, the rest of it never becomes resident memory.
            made[name] = torch.empty(like.shape, dtype=like.dtype, device=self.device)
            cut = partition is not None and isinstance(like, nn.Parameter)
            spans[name] = partition.spans(like.numel()) if partition and cut else [(0, like.numel())]
        for name, first, values in self.conversion.pieces(target, self.files, wanted, spans[target.name]):
            flat = made[name].view(-1)
            for start, stop in spans[name]:
                low, high = max(start, first), min(stop, first + len(values))
                if low < high:
                    flat[low:high].copy_(values[low - first : high - first])
        for name, tensor in made.items():
            put = self._put(name, tensor)
            if partition is not None and isinstance(put, nn.Parameter):
                partition.take(put)

    def _make_kept(self, name: str, like: torch.Tensor, partition: Partition | None) -> None:
        """Put experts in place as they are stored."""
        made = nn.Parameter(torch.empty_like(like, device=self.device), requires_grad=False)
        spans = partition.spans(like.numel()) if partition else [(0, like.numel())]
        if not self.kept[name].fill(made.data.view(-1), spans):
            raise not_finite([name])
        self._put(name, made)
        if partition is not None:
            partition.take(made)

    def _optional(self, names: Iterable[str]) -> set[str]:
        """Those of `names`, buffers, that some checkpoints of the model's class go without."""
        patterns = self.network._keys_to_ignore_on_load_missing or ()
        buffers = dict(self.network.named_buffers()) if patterns else {}
        return {name for name in names if name in buffers and any(re.search(one, name) for one in patterns)}

    def _is_tied(self, part: str) -> bool:
        """Whether the part is a head that is the span's embedding: one tensor in memory, as in the files."""
        if part != self.family.head or not self.span.embedding:
            return False
        tied = getattr(self.network.config, "tie_word_embeddings", False)
        return bool(tied) and self._keys(part) == self._keys(self.family.embedding)

    def _put(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        path, _, own = name.rpartition(".")
        module = self.network.get_submodule(path)
        if own not in module._buffers and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, own, tensor)
        return tensor
