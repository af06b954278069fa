"""The floating-point operations that a training step of a shape cannot do without.

Counted by `roma_ds/planner/operations.py`, from the network that the shape's config gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from shapes import Shape

from roma_ds.families import detect
from roma_ds.planner.model_sizes import ModelSizes, sizes_of
from roma_ds.planner.operations import StepOperations, model_pass, training_step


@cache
def shape_sizes(shape: Shape) -> ModelSizes:
    """The sizes of a model of this shape; no weights are made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(shape.config())
    return sizes_of(network, detect(network))


def step_cost(shape: Shape, lengths: Sequence[int], trained: int, rows: int = 1) -> StepOperations:
    """Operations of one training step on the suffix over sequences of `lengths`.

    rows: positions of each sequence that the loss needs, at its end. `trained` counts layers from the first
    one whose router learns to the last.
    """
    return training_step(shape_sizes(shape), shape.layers - trained, lengths, rows)


def model_cost(shape: Shape, lengths: Sequence[int], rows: int = 1) -> float:
    """Operations of one forward pass of the whole network, last layer and head at `rows` positions."""
    return model_pass(shape_sizes(shape), lengths, rows)
