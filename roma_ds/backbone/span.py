"""Part of a network: some decoder layers, with or without embedding and head, and nothing else in memory."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from roma_ds.backbone.checkpoint_files import CheckpointFiles
from roma_ds.backbone.conversion import Conversion
from roma_ds.backbone.loading import load_config, memory_faults
from roma_ds.comm import World, agreement
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import Family, family_of


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
    Raises UserError for a checkpoint whose weights are quantized.
    """
    from transformers import AutoModelForCausalLM

    config = config or load_config(model)
    family = family_of(config)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"model.path: {model.path} has quantized weights, which cannot be read layer by layer",
            "use the checkpoint in bfloat16 or float32",
        )
    if span is not None:
        config = family.truncated(config, span.first, span.last)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
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

    Weights are those that `load_model` gives. They are read one decoder layer at a time. With `zero3`, a
    resolved DeepSpeed config of stage 3, each layer is partitioned over the ranks as soon as it is read: a
    collective, where with `world` rank 0 alone reads, and an error there is raised on every rank.

    Raises UserError when tensors are missing, have other shapes or cannot be read, EnvironmentFault when
    memory does not suffice.
    """
    with agreement(world) if world is not None and zero3 is not None else nullcontext():
        loader = SpanLoader(model, span, device)
    for part in loader.parts():
        with agreement(world) if world is not None and zero3 is not None else nullcontext():
            loader.fill(part, values=zero3 is None or world is None or world.is_first)
        if zero3 is not None:
            import deepspeed

            deepspeed.zero.Init(
                module=loader.network.get_submodule(part), config_dict_or_path=deepcopy(zero3)
            )
    return loader.network


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
        _make_rotary(self.network, self.family, device)
        self._check_keys()

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

    def _stored_keys(self, part: str) -> dict[str, str]:
        """Checkpoint keys of a part by the name that they have in the network."""
        stored = part
        if part.startswith(f"{self.family.layers}."):
            number = int(part.rpartition(".")[2])
            stored = f"{self.family.layers}.{number + self.span.first}"
        keys = {part + key[len(stored) :]: key for key in self.files.under(f"{stored}.")}
        ends = (self.family.embedding, self.family.head)
        if not keys and part in ends and getattr(self.network.config, "tie_word_embeddings", False):
            other = ends[1 - ends.index(part)]
            keys = {part + key[len(other) :]: key for key in self.files.under(f"{other}.")}
        return keys

    def _wanted(self, part: str) -> dict[str, torch.Tensor]:
        module = self.network.get_submodule(part)
        return {f"{part}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}

    def _check_keys(self) -> None:
        missing: list[str] = []
        for part in self.parts():
            wanted = self._wanted(part)
            targets = self.conversion.targets(list(self._stored_keys(part)), wanted)
            found = {name for target in targets for name in self.conversion.names(target)}
            missing.extend(sorted(wanted.keys() - found))
        if missing:
            raise UserError(
                f"{self.model.path} lacks {len(missing)} tensors that the model needs, first {missing[0]}",
                "use a complete checkpoint that belongs to this config.json",
            )

    def fill(self, part: str, values: bool = True) -> None:
        """Give a part its weights; without `values`, memory for them."""
        wanted = self._wanted(part)
        if self._is_tied(part):
            self._put(f"{part}.weight", self.network.get_submodule(self.family.embedding).weight)
            return
        with memory_faults(self.model):
            if not values:
                for name, like in wanted.items():
                    self._put(name, torch.empty(like.shape, dtype=like.dtype, device=self.device))
                return
            stored = self._stored_keys(part)
            for target in self.conversion.targets(list(stored), wanted):
                made = self.conversion.convert(target, lambda key: self.files.read(stored[key]), wanted)
                for name, tensor in made:
                    if tensor.shape != wanted[name].shape:
                        raise UserError(
                            f"model.path: {name} of {self.model.path} has shape {tuple(tensor.shape)}, "
                            f"the model needs {tuple(wanted[name].shape)}",
                            "use a config.json that belongs to these weights",
                        )
                    self._put(name, tensor.to(self.device, wanted[name].dtype))

    def _is_tied(self, part: str) -> bool:
        """Whether the part is a head that is the span's embedding: one tensor in memory, as in the files."""
        if part != self.family.head or not self.span.embedding:
            return False
        tied = getattr(self.network.config, "tie_word_embeddings", False)
        ends = [list(self._stored_keys(end).values()) for end in (part, self.family.embedding)]
        return bool(tied) and ends[0] == ends[1]

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        path, _, own = name.rpartition(".")
        module = self.network.get_submodule(path)
        if own not in module._buffers and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, own, tensor)


def _replace(network: Any, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _make_rotary(network: Any, family: Family, device: torch.device) -> None:
    """Compute what no checkpoint holds; in float32, whatever the type of the weights."""
    made = type(network.get_submodule(family.rotary))
    with torch.device("cpu"):
        _replace(network, family.rotary, made(config=network.config).to(device).eval())
