"""What is known of a model before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.backbone.span import skeleton
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
