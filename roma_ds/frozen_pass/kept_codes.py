"""Whether the frozen experts of a run stay in the codes that their checkpoint stores them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.loading import checkpoint
from roma_ds.checkpoint.span import Span, SpanLoader
from roma_ds.config import ModelConfig
from roma_ds.errors import UserError
from roma_ds.families import family_of


def keeps_codes(model: ModelConfig, zero3: Mapping[str, Any] | None, device: torch.device) -> bool:
    """What model.frozen comes to on a device, and with a resolved DeepSpeed config of stage 3.

    Raises UserError where codes are asked for and cannot stay.
    """
    if model.frozen == "decoded":
        return False
    problem = _problem(zero3, device)
    if problem is not None and model.frozen == "stored":
        raise UserError(
            f"model.frozen: stored is not possible {problem}", "set model.frozen to decoded or auto"
        )
    return problem is None


def kept_bytes(model: ModelConfig, zero3: Mapping[str, Any] | None, device: torch.device) -> dict[str, int]:
    """Bytes of the parameters that stay in codes, by name, of a checkpoint here; no code is read.

    Raises UserError as `keeps_codes` does, and where no experts can stay that must.
    """
    if not Path(checkpoint(model)).is_dir() or not keeps_codes(model, zero3, device):
        return {}
    files = CheckpointFiles(model)
    if not files.decoding.kinds() and model.frozen == "auto":
        return {}
    whole = Span.suffix(0, family_of(files.config).depth(files.config))
    kept = SpanLoader(model, whole, torch.device("cpu"), files, stored=True).kept
    return {name: one.shape[0] * one.bytes for name, one in kept.items()}


def _problem(zero3: Mapping[str, Any] | None, device: torch.device) -> str | None:
    """What keeps experts from staying in codes, in words; None where nothing does."""
    if device.type != "cpu":
        return f"on {device.type}: experts in codes are decoded on a CPU alone"
    zero = zero3["zero_optimization"] if zero3 is not None else {}
    for key in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            return f"with {key} in the DeepSpeed config, which rounds what is gathered once more"
    if zero.get("offload_param", {}).get("device") == "nvme":
        return "with offload_param to nvme in the DeepSpeed config, which holds weights of one type alone"
    return None
