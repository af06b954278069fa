"""Part of a network: some decoder layers, with or without embedding and head, and nothing else in memory."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles, StoredTensor
from roma_ds.checkpoint.conversion import Conversion, Target
from roma_ds.checkpoint.load_report import LoadReport
from roma_ds.checkpoint.loading import load_config, memory_faults
from roma_ds.checkpoint.partition import Partition
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import Family, family_of
from roma_ds.families.config_values import sizes_in
from roma_ds.families.unusable_config import making_faults, require_plain_weights
from roma_ds.progress import Progress

MB = 1_000_000
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
    """The causal LM, or a span of it, on the meta device: shapes and types, no weights.

    Without embedding its `base_model` takes `inputs_embeds`; without head its final norm and its output
    embedding are the identity. config: of the whole model, where it is known.
    Raises UserError for quantized weights, a tied head with a bias, a config that describes no network.
    """
    from transformers import AutoModelForCausalLM

    config = config or load_config(model)
    family = family_of(config)
    require_plain_weights(config, model.path)
    if span is not None:
        config = family.truncated(config, span.first, span.last, span.embedding)
    with making_faults(config), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
        )
    _settle_types(network, getattr(torch, model.dtype))
    head = network.get_output_embeddings()
    if getattr(config, "tie_word_embeddings", False) and getattr(head, "bias", None) is not None:
        raise UserError(
            f"model.path: the head of {model.path} shares its weight with the embedding "
            "(tie_word_embeddings) and has a bias of its own, which is not supported",
            "save the checkpoint with tie_word_embeddings false and the head's weight in it",
        )
    if span is not None and not span.embedding:
        _replace(network, family.embedding, None)
    if span is not None and not span.head:
        _replace(network, family.norm, nn.Identity())
        _replace(network, family.head, nn.Identity())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.config.use_cache = False
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
) -> Any:
    """A transformers causal LM of the span alone, frozen, in eval mode; its layers are numbered from 0.

    With `zero3`, a resolved DeepSpeed config of stage 3, the network is partitioned over the ranks while it
    is read, and each rank reads its own share alone. A collective where `world` is given: an error on one
    rank is raised on every rank.

    Raises UserError when tensors are missing, have other shapes or cannot be read, EnvironmentFault when
    memory does not suffice.
    """
    partition = Partition(zero3) if zero3 is not None else None
    with agreement(world) if world is not None else nullcontext():
        loader = SpanLoader(model, span, device)
        sizes = {part: loader.size(part) for part in loader.parts()}
        shown = (world is None or world.is_first) and sum(sizes.values()) >= SHOWN_BYTES
        with Progress(sum(sizes.values()) // MB, "load", "MB", enabled=shown) as progress:
            for part, size in sizes.items():
                loader.fill(part, partition)
                progress.advance(size // MB)
    return loader.network


@dataclass(frozen=True)
class StoredPart:
    """The stored tensors of one part of a network, by the names that they have there."""

    files: CheckpointFiles
    keys: dict[str, str]
    """Checkpoint keys by local key."""

    def place(self, key: str) -> StoredTensor:
        """As `CheckpointFiles.stored`."""
        return self.files.stored(self.keys[key])

    def read(self, key: str) -> torch.Tensor:
        """As `CheckpointFiles.read`."""
        return self.files.read(self.keys[key])

    def read_flat(self, key: str, start: int, stop: int) -> torch.Tensor:
        """As `CheckpointFiles.read_flat`."""
        return self.files.read_flat(self.keys[key], start, stop)


class SpanLoader:
    """A span whose weights are still to be read: made in the main thread, filled in any.

    Making the network sets torch's default type for a moment, which is that of all threads; filling does not.
    """

    def __init__(
        self, model: ModelConfig, span: Span, device: torch.device, files: CheckpointFiles | None = None
    ) -> None:
        """files: of the same model, to open them once for several spans. Raises as `load_span` does."""
        self.model, self.span, self.device = model, span, device
        self.files = files or CheckpointFiles(model)
        self.network = skeleton(model, span, self.files.config)
        self.family: Family = family_of(self.network.config)
        self.conversion = Conversion(self.network)
        self.report().refuse(model.path, sizes_in(self.files.config))
        with making_faults(self.network.config):
            _make_rotary(self.network, self.family, device)

    def load(self) -> Any:
        """The network with all its weights. Raises as `load_span` does."""
        for part in self.parts():
            self.fill(part)
        return self.network

    def parts(self) -> list[str]:
        """Paths of the modules to fill, each small enough to be in memory whole."""
        layers = [f"{self.family.layers}.{number}" for number in range(self.span.last - self.span.first)]
        return [
            *([self.family.embedding] if self.span.embedding else []),
            *layers,
            *([self.family.norm, self.family.head] if self.span.head else []),
        ]

    def _stored(self, part: str) -> StoredPart:
        stored = part
        if part.startswith(f"{self.family.layers}."):
            number = int(part.rpartition(".")[2])
            stored = f"{self.family.layers}.{number + self.span.first}"
        keys = {part + key[len(stored) :]: key for key in self.files.under(f"{stored}.")}
        ends = (self.family.embedding, self.family.head)
        if not keys and part in ends and getattr(self.network.config, "tie_word_embeddings", False):
            other = ends[1 - ends.index(part)]
            keys = {part + key[len(other) :]: key for key in self.files.under(f"{other}.")}
        return StoredPart(self.files, keys)

    def _wanted(self, part: str) -> dict[str, torch.Tensor]:
        module = self.network.get_submodule(part)
        return {f"{part}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}

    def size(self, part: str) -> int:
        """Bytes of a part in memory, whole."""
        return sum(tensor.nbytes for tensor in self._wanted(part).values())

    def report(self) -> LoadReport:
        """What keeps this span from being made of the files, and for a whole model what is left of them."""
        missing: list[str] = []
        unfit: list[str] = []
        used: set[str] = set()
        for part in self.parts():
            wanted, stored = self._wanted(part), self._stored(part)
            targets = self.conversion.targets(list(stored.keys), wanted)
            found = {name for target in targets for name in self.conversion.names(target)}
            missing.extend(self._in_whole(name) for name in sorted(wanted.keys() - found))
            problems = (self.conversion.problem(target, stored, wanted) for target in targets)
            unfit.extend(self._in_whole(text) for text in problems if text is not None)
            lists = (keys for target in targets for keys in target.sources.values())
            used.update(stored.keys[key] for keys in lists for key in keys)
        return LoadReport(tuple(missing), tuple(unfit), tuple(self._left(used)))

    def _left(self, used: set[str]) -> list[str]:
        """Keys that nothing in the whole model takes, but for those that its class is known to leave."""
        if self.span != Span.suffix(0, int(self.files.config.num_hidden_layers)):
            return []
        known = [*(self.network._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
        pattern = re.compile("|".join(f"(?:{one})" for one in known))
        return sorted(key for key in self.files.keys if key not in used and not pattern.search(key))

    def _in_whole(self, text: str) -> str:
        """`text` that starts with a layer of the span, with the number that it has in the whole model."""
        head, _, rest = text.removeprefix(f"{self.family.layers}.").partition(".")
        if not head.isdigit():
            return text
        return f"{self.family.layers}.{int(head) + self.span.first}.{rest}"

    def fill(self, part: str, partition: Partition | None = None) -> None:
        """Give a part its weights, or with `partition` this rank's share of them."""
        if self._is_tied(part):
            self._put(f"{part}.weight", self.network.get_submodule(self.family.embedding).weight)
            return
        wanted, stored = self._wanted(part), self._stored(part)
        with memory_faults(self.model), torch.no_grad():
            for target in self.conversion.targets(list(stored.keys), wanted):
                self._make(target, stored, wanted, partition)

    def _make(
        self,
        target: Target,
        stored: StoredPart,
        wanted: dict[str, torch.Tensor],
        partition: Partition | None,
    ) -> None:
        """Put in place what a target's sources give."""
        made, spans = {}, {}
        for name in self.conversion.names(target):
            like = wanted[name]
            # Where a rank fills only its share on a CPU, the rest of it never becomes resident memory.
            made[name] = torch.empty(like.shape, dtype=like.dtype, device=self.device)
            cut = partition is not None and isinstance(like, nn.Parameter)
            spans[name] = partition.spans(like.numel()) if partition and cut else [(0, like.numel())]
        for name, first, values in self.conversion.pieces(target, stored, wanted, spans[target.name]):
            flat = made[name].view(-1)
            for start, stop in spans[name]:
                low, high = max(start, first), min(stop, first + len(values))
                if low < high:
                    flat[low:high].copy_(values[low - first : high - first])
        for name, tensor in made.items():
            put = self._put(name, tensor)
            if partition is not None and isinstance(put, nn.Parameter):
                partition.take(put)

    def _is_tied(self, part: str) -> bool:
        """Whether the part is a head that is the span's embedding: one tensor in memory, as in the files."""
        if part != self.family.head or not self.span.embedding:
            return False
        tied = getattr(self.network.config, "tie_word_embeddings", False)
        ends = [list(self._stored(end).keys.values()) for end in (part, self.family.embedding)]
        return bool(tied) and ends[0] == ends[1]

    def _put(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        path, _, own = name.rpartition(".")
        module = self.network.get_submodule(path)
        if own not in module._buffers and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, own, tensor)
        return tensor


def _replace(network: Any, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _settle_types(network: Any, dtype: torch.dtype) -> None:
    """Parameters all of `dtype`, as DeepSpeed casts them; buffers that transformers keeps in float32 so."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    plan = network._get_dtype_plan(dtype)
    for name, buffer in network.named_buffers() if plan else ():
        for pattern, wanted in plan.items():
            if re.search(pattern.replace("*", ".*"), name):
                buffer.data = buffer.data.to(wanted)


def _make_rotary(network: Any, family: Family, device: torch.device) -> None:
    """Compute what no checkpoint holds; in float32, whatever the type of the weights."""
    made = type(network.get_submodule(family.rotary))
    with torch.device("cpu"):
        _replace(network, family.rotary, made(config=network.config).to(device).eval())
