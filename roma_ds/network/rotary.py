"""Position embeddings whose table depends on the longest sequence: used for short sequences only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from roma_ds.errors import UserError

SWITCHING = ("longrope", "dynamic")
"""Kinds, as `rope_type` names them, that compute another table once a sequence is long."""


def switching_length(config: Any) -> int | None:
    """The positions behind which a model computes them in another way; None where it never does."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in SWITCHING:
        return None
    return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


def refuse_switching_rotary(network: Any) -> None:
    """Let a network refuse positions behind which it would switch its table, for all that lies in the batch.

    Hidden states of a sample must not depend on what else is in its batch. Its forward then raises UserError.
    """
    most = switching_length(network.config)
    if most is None:
        return

    def check(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, torch.Tensor]) -> None:
        positions = named["position_ids"] if "position_ids" in named else inputs[1]
        longest = int(positions.max()) + 1
        if longest > most:
            raise UserError(
                f"this model computes positions in another way from {most} tokens on, and a sequence has "
                f"{longest}",
                f"set data.max_tokens well below {most}",
            )

    for module in network.modules():
        if "RotaryEmbedding" in type(module).__name__:
            module.register_forward_pre_hook(check, with_kwargs=True)
