"""A checkpoint held against its config before anything is loaded."""

from __future__ import annotations

import torch

from roma_ds.backbone.checkpoint_files import CheckpointFiles
from roma_ds.backbone.span import Span, SpanLoader
from roma_ds.config import ModelConfig


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
