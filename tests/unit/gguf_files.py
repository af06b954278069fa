"""Tiny GGUF files as llama.cpp's converter writes them, by the package gguf, and router files for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from roma_ds.storage.gate_digest import gate_digests
from roma_ds.training.stage import write_router_file

HIDDEN, WIDTH, EXPERTS = 32, 64, 8
KINDS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}


@dataclass(frozen=True)
class Tiny:
    """A model of `blocks` blocks, with routers in `sparse`; gates are bfloat16 numbers, as published ones."""

    blocks: int = 4
    sparse: tuple[int, ...] = (1, 2, 3)
    kind: str = "F32"
    """Of the gates."""
    seed: int = 0
    architecture: str = "olmoe"
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further whole numbers of the metadata."""
    alignment: int | None = None

    def gates(self) -> dict[int, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return {
            layer: torch.randn(EXPERTS, HIDDEN, generator=generator).bfloat16().float()
            for layer in self.sparse
        }

    def router(self, folder: Path, layers: tuple[int, ...] = (2, 3), digests: bool = True) -> Path:
        """A router file that was trained on this model."""
        path = folder / "router.safetensors"
        base = {layer: gate for layer, gate in self.gates().items() if layer in layers}
        facts = {"base_model": "OWNER/tiny", "layers": ",".join(map(str, layers)), "method": "roma"}
        facts |= {"moe_layers": ",".join(map(str, self.sparse)), "base_layers": str(self.blocks)}
        if digests:
            facts |= gate_digests(base)
        write_router_file(
            path, tuned(layers), {n: f"model.layers.{n}.mlp.gate.weight" for n in layers}, facts
        )
        return path

    def write(self, path: Path, endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE, **split: Any) -> Path:
        """split: `split_max_tensors` of the writer, and whether the first part has no tensors."""
        writer = gguf.GGUFWriter(path, self.architecture, endianess=endian, **split)
        writer.add_block_count(self.blocks)
        writer.add_expert_count(EXPERTS)
        writer.add_token_list([f"w{number}" for number in range(40)])
        writer.add_token_scores([float(number) for number in range(40)])
        if self.alignment:
            writer.add_custom_alignment(self.alignment)
        for key, value in self.more.items():
            writer.add_uint32(key, value)
        source = np.random.default_rng(self.seed)
        add(writer, "token_embd.weight", source.normal(size=(40, HIDDEN)), "Q8_0")
        for block in range(self.blocks):
            add(writer, f"blk.{block}.attn_norm.weight", source.normal(size=HIDDEN), "F32")
            if block in self.sparse:
                add(writer, f"blk.{block}.ffn_gate_inp.weight", self.gates()[block].numpy(), self.kind)
                experts = source.normal(size=(EXPERTS, WIDTH, HIDDEN))
                add(writer, f"blk.{block}.ffn_up_exps.weight", experts, "Q8_0")
                add(writer, f"blk.{block}.exp_probs_b.bias", source.normal(size=EXPERTS), "F32")
            else:
                add(writer, f"blk.{block}.ffn_up.weight", source.normal(size=(WIDTH, HIDDEN)), "F16")
        # Its size is no multiple of the alignment: padding behind the last tensor.
        add(writer, "output_norm.weight", source.normal(size=3), "F32")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def add(writer: gguf.GGUFWriter, name: str, values: Any, kind: str) -> None:
    number = KINDS[kind]
    data = gguf.quants.quantize(values.astype(np.float32), number)
    writer.add_tensor(name, data, raw_dtype=number)


def tuned(layers: tuple[int, ...] = (2, 3), shape: tuple[int, int] = (EXPERTS, HIDDEN)) -> dict[int, Any]:
    """Gates of which bfloat16 and float16 are no exact copies."""
    generator = torch.Generator().manual_seed(9)
    return {layer: torch.randn(shape, generator=generator) for layer in layers}


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor, as the package reads them."""
    return {
        tensor.name: (tensor.tensor_type.name, tuple(tensor.shape.tolist()), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    """Every entry, lists too."""
    fields = gguf.GGUFReader(path).fields.values()
    return {field.name: field.contents() for field in fields if not field.name.startswith("GGUF.")}
