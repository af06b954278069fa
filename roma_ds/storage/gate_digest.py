"""Digests of router weights, by which a file in another format is known to hold the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from roma_ds.storage.raw_values import bytes_of

DIGEST = "base_gates_"
"""In a router file's metadata before the name of a type: the digest of the base's gates rounded to it."""
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of stored gates by the name that both safetensors and GGUF give them."""
FOR_CODES = "BF16"
"""The type that takes the place of codes, in which a gate is not written back."""


def gate_digest(weights: Mapping[int, torch.Tensor], dtype: torch.dtype) -> str:
    """SHA-256 of router weights [experts, hidden] by layer number, each value rounded to `dtype`."""
    digest = hashlib.sha256()
    for layer in sorted(weights):
        weight = weights[layer]
        digest.update(f"{layer}:{'x'.join(map(str, weight.shape))}\n".encode())
        digest.update(bytes_of(weight.to("cpu", dtype).contiguous()))
    return digest.hexdigest()


def gate_digests(weights: Mapping[int, torch.Tensor]) -> dict[str, str]:
    """The metadata of a router file that say which gates its base has at the trained layers.

    One digest for each type that a converter may have rounded them to.
    """
    return {f"{DIGEST}{name}": gate_digest(weights, dtype) for name, dtype in TYPES.items()}
