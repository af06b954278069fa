"""Routers rounded, in every forward pass, to the type in which the checkpoint stores its gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from roma_ds.checkpoint.checkpoint_files import CheckpointFiles
from roma_ds.checkpoint.stored_gates import as_stored, stored_dtypes
from roma_ds.config import RunConfig
from roma_ds.families import MoELayout


class GateRounding:
    """What a model that is served in its checkpoint's types makes of float32 routers.

    The masters stay float32 and learn by the gradient at the rounded values, as in mixed precision: the
    rounding itself, whose derivative is zero almost everywhere, is passed over.
    """

    def __init__(self, dtypes: Mapping[int, torch.dtype]) -> None:
        """dtypes: of the stored gates by layer."""
        self._dtypes = dict(dtypes)

    @classmethod
    def asked(cls, run: RunConfig, layout: MoELayout) -> GateRounding | None:
        """That of `train.gate_dtype`; None where routers are taken as they are."""
        if run.train.gate_dtype == "float32":
            return None
        return cls(stored_dtypes(CheckpointFiles(run.model), layout))

    def rounded(self, weights: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """`weights` by layer, with values that the stored type has, in their own type."""
        return as_stored(weights, self._dtypes)

    def apply(self, routers: Mapping[int, Any]) -> None:
        """Round parameters in place, of those that ZeRO-3 cut this rank's share; not their masters."""
        for layer, parameter in routers.items():
            held = [parameter.data] if parameter.data.numel() else []
            share = getattr(parameter, "ds_tensor", None)
            for values in held if share is None else [*held, share.data]:
                values.copy_(self.rounded({layer: values})[layer])
