"""Whether the frozen experts of a run stay in the codes that their checkpoint stores them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from roma_ds.config import ModelConfig
from roma_ds.errors import UserError


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
