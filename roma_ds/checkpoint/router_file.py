"""The router file: a few megabytes that turn a base checkpoint into a tuned one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from roma_ds.errors import UserError
from roma_ds.storage.tensor_header import read_header

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class RouterFile:
    """Weights by checkpoint key, float32 [experts, hidden], and the metadata written at training."""

    weights: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def by_layer(self) -> dict[int, torch.Tensor]:
        """Weights by layer number. Raises UserError on a key without one."""
        found = {}
        for key, weight in self.weights.items():
            match = _LAYER.search(key)
            if match is None:
                raise UserError(
                    f"router file key {key} names no layer", "use a file written by roma-ds train"
                )
            found[int(match.group(1))] = weight
        return found


def read_router_file(path: Path) -> RouterFile:
    """Read `router.safetensors`.

    Raises UserError when it is absent or cut, holds no router, or one with values that are no finite numbers.
    """
    try:
        # The library takes one of two tensors of the same name.
        read_header(path)
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a router file: {error}", "train again, or check the path"
        ) from error
    if not weights:
        raise UserError(f"{path} holds no router", "train again, or check the path")
    for key, weight in weights.items():
        if not weight.is_floating_point():
            raise UserError(
                f"{path}: {key} has the type {weight.dtype}, no weight", "use a file written by roma-ds train"
            )
        if not weight.isfinite().all():
            raise UserError(
                f"{path}: {key} holds NaN or infinity", "train again, or take a file from a state before it"
            )
    return RouterFile(weights, metadata)
