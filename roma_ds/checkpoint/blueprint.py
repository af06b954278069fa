"""What is known of a model, and of its checkpoint, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.span import Span, SpanLoader, skeleton
from roma_ds.config import ModelConfig
from roma_ds.families import MoELayout, detect


@dataclass(frozen=True)
class Blueprint:
    """Sizes of a whole model and the places of its routers."""

    layout: MoELayout
    depth: int
    """Decoder layers, dense ones too."""
    hidden: int
    """Width of the hidden states."""
    total_parameters: int
    layer_parameters: tuple[int, ...]
    """By decoder layer."""


def blueprint(model: ModelConfig) -> Blueprint:
    """From the model's config alone. Raises UserError where the model is none of a known family."""
    network = skeleton(model)
    layout = detect(network)
    layers = network.base_model.layers
    return Blueprint(
        layout,
        len(layers),
        int(network.config.hidden_size),
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
    whole = Span.suffix(0, int(files.config.num_hidden_layers))
    SpanLoader(model, whole, torch.device("cpu"), files)
    return files
