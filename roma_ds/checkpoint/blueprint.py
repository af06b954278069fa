"""What is known of a model, and of its checkpoint, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.gate_keys import stored_layout
from roma_ds.checkpoint.span import Span, SpanLoader, skeleton
from roma_ds.config import ModelConfig
from roma_ds.families import MoELayout, detect, family_of
from roma_ds.families.entering import Entering


@dataclass(frozen=True)
class Blueprint:
    """Sizes of a whole model and the places of its routers."""

    layout: MoELayout
    depth: int
    """Decoder layers, dense ones too."""
    config: Any
    """The transformers config."""
    dtype: str
    """torch's name of the type of the weights."""
    total_parameters: int
    layer_parameters: tuple[int, ...]
    """By decoder layer."""

    def entering(self, layer: int) -> Entering:
        """What a call of a decoder layer is given of each token."""
        return self.layout.family.entering(self.config, layer, self.dtype)


def blueprint(model: ModelConfig, files: CheckpointFiles | None = None) -> Blueprint:
    """From the model's config alone, or with `files` with the gate keys that its checkpoint has.

    Raises UserError where the model is none of a known family.
    """
    network = skeleton(model)
    layout = detect(network) if files is None else stored_layout(detect(network), files)
    layers = network.get_submodule(layout.family.layers)
    return Blueprint(
        layout,
        len(layers),
        network.config,
        model.dtype,
        sum(parameter.numel() for parameter in network.parameters()),
        tuple(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers),
    )


def check_checkpoint(model: ModelConfig) -> CheckpointFiles:
    """The files of a checkpoint, whose headers were looked at; no weight is read. Fetches a hub id's files.

    Raises UserError that names files that are absent or damaged, or tensors of the network that are not there
    or have another shape, and stored ones that belong nowhere.
    """
    files = CheckpointFiles(model)
    files.check_shards()
    whole = Span.suffix(0, family_of(files.config).depth(files.config))
    SpanLoader(model, whole, torch.device("cpu"), files)
    return files
