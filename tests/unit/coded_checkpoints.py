"""Tiny checkpoints whose weights are stored in codes, and the same in plain numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from unit.coded_tensors import Format, blocks_of_experts, experts_by_library

WEIGHTS = r"\.(self_attn|experts\.\d+|shared_experts|mlp)\.(\w+_proj|\w+_proj_with_mqa|w\d)\.weight$"
"""Products in layers, but no router, norm, embedding or head."""


def in_codes(base: Path, folder: Path, form: Format, which: str = WEIGHTS) -> tuple[Path, Path]:
    """Two copies of a checkpoint: some weights in `form`, and the same as its library decodes them."""
    coded, plain = {}, {}
    for number, (key, values) in enumerate(sorted(_tensors(base).items())):
        if re.search(which, key):
            parts = form.draw_with(number, tuple(values.shape))
            coded |= {key.removesuffix(".weight") + name: stored for name, stored in parts.items()}
            plain[key] = form.decode(parts).float()
        else:
            coded[key] = plain[key] = values
    assert len(coded) > len(plain)
    return _saved(base, folder / "coded", coded, form.said), _saved(base, folder / "plain", plain, None)


def with_blocks(base: Path, folder: Path) -> tuple[Path, Path]:
    """As `in_codes`, with the experts of each layer in one tensor of MXFP4 blocks."""
    coded, plain = {}, {}
    for number, (key, values) in enumerate(sorted(_tensors(base).items())):
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            parts = blocks_of_experts(tuple(values.shape), torch.Generator().manual_seed(number))
            coded |= {key + name: stored for name, stored in parts.items()}
            plain[key] = experts_by_library(parts)
        else:
            coded[key] = plain[key] = values
    assert len(coded) > len(plain)
    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]}
    return _saved(base, folder / "coded", coded, said), _saved(base, folder / "plain", plain, None)


def change(folder: Path, values: Mapping[str, torch.Tensor | None]) -> None:
    """Put tensors in the place of stored ones, or take them away."""
    found = load_file(folder / "model.safetensors") | dict(values)
    kept = {key: one for key, one in found.items() if one is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _tensors(base: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(base.glob("*.safetensors")):
        found |= load_file(path)
    return found


def _saved(base: Path, folder: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any] | None) -> Path:
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({key: values.contiguous() for key, values in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": said} if said is not None else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
