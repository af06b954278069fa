"""Weights in the formats of published checkpoints: random codes, and what their libraries make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Parts = dict[str, torch.Tensor]
"""Stored tensors by what follows the name of the module."""
SCALE = 0.02
TABLES = {
    "nf4": [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    "fp4": [
        *(0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5),
        *(0.1666666716337204, 0.25, 0.0, -0.0052083334885537624, -0.6666666865348816, -1.0),
        *(-0.3333333432674408, -0.5, -0.1666666716337204, -0.25),
    ],
}
"""Values of the codes of bitsandbytes, which its kernels have built in."""


@dataclass(frozen=True)
class Format:
    """One way of storing a weight [O, I]."""

    name: str
    said: dict[str, Any]
    """The quantization_config."""
    draw: Callable[[int, int, torch.Generator], Parts]
    decode: Callable[[Parts], torch.Tensor]
    """By the defining library, in the type in which that computes it."""
    shape: tuple[int, int] = (48, 64)

    def draw_with(self, seed: int, shape: tuple[int, int] | None = None) -> Parts:
        """Random stored tensors."""
        return self.draw(*(shape or self.shape), torch.Generator().manual_seed(seed))


def floats(shape: tuple[int, ...], dice: torch.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scales, none of which is a power of two."""
    return (SCALE * (0.5 + torch.rand(shape, generator=dice))).to(dtype)


def integers(low: int, high: int, shape: tuple[int, ...], dice: torch.Generator, dtype: Any) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=dice).to(dtype)


def words(shape: tuple[int, ...], dice: torch.Generator) -> torch.Tensor:
    return integers(-(2**31), 2**31, shape, dice, torch.int32)


def float8(shape: tuple[int, ...], dice: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=dice).to(torch.float8_e4m3fn)


def up(size: int, step: int) -> int:
    return -(-size // step)


def listed(
    name: str,
    form: str,
    draw: Callable[[int, int, torch.Generator], Parts],
    shape: tuple[int, int] = (48, 64),
    **weights: Any,
) -> Format:
    """A format of compressed-tensors; weights: its settings, as a config has them."""
    settings = {"symmetric": True, **weights}
    said = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": settings, "format": form}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }

    def decode(parts: Parts) -> torch.Tensor:
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings), format=form)
        state = {name.removeprefix("."): values.clone() for name, values in parts.items()}
        found: torch.Tensor = BaseCompressor.get_value_from_registry(form).decompress(state, scheme)["weight"]
        return found

    return Format(name, said, draw, decode, shape)


def block_float8(name: str, block: tuple[int, int], shape: tuple[int, int], dtype: torch.dtype) -> Format:
    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        grid = (up(rows, block[0]), up(columns, block[1]))
        return {".weight": float8((rows, columns), dice), ".weight_scale_inv": floats(grid, dice, dtype)}

    def decode(parts: Parts) -> torch.Tensor:
        made = FP8BlockDequantizer(weight_block_size=block, dtype=torch.float32)
        named = {f"x{name}": values for name, values in parts.items()}
        return made.process(named)["x.weight"]

    said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    return Format(name, said, draw, decode, shape)


def with_exponents(shape: tuple[int, int]) -> Format:
    """FP8 blocks whose scales are exponents of two."""

    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        scale = integers(117, 122, (up(rows, 128), up(columns, 128)), dice, torch.uint8)
        return {".weight": float8((rows, columns), dice), ".scale": scale.view(torch.float8_e8m0fnu)}

    def decode(parts: Parts) -> torch.Tensor:
        return FP8.decode({".weight": parts[".weight"], ".weight_scale_inv": parts[".scale"].float()})

    return Format("fp8 blocks with e8m0", FP8.said, draw, decode, shape)


def _with_scale(scale: Callable[[int, int], tuple[int, ...]], dtype: torch.dtype) -> Any:
    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        return {
            ".weight": float8((rows, columns), dice),
            ".weight_scale": floats(scale(rows, columns), dice, dtype),
        }

    return draw


def _int8(rows: int, columns: int, dice: torch.Generator) -> Parts:
    return {
        ".weight": integers(-128, 128, (rows, columns), dice, torch.int8),
        ".weight_scale": floats((rows, 1), dice),
        ".weight_zero_point": integers(-9, 9, (rows, 1), dice, torch.int8),
    }


def _packed(bits: int, group: int | None, zeros: bool) -> Any:
    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        groups = up(columns, group) if group else 1
        codes = torch.randint(0, 1 << bits, (rows, up(columns * bits, 32) * 32 // bits), generator=dice)
        codes[:, columns:] = 0
        shifts = torch.arange(0, 32, bits)
        packed = (codes.unflatten(1, (-1, 32 // bits)) << shifts).sum(dim=2)
        parts = {
            ".weight_packed": packed.to(torch.int32),
            ".weight_scale": floats((rows, groups), dice, torch.bfloat16),
            ".weight_shape": torch.tensor([rows, columns]),
        }
        if zeros:
            parts[".weight_zero_point"] = words((up(rows * bits, 32), groups), dice)
        return parts

    return draw


def _nvfp4(rows: int, columns: int, dice: torch.Generator) -> Parts:
    return {
        ".weight_packed": integers(0, 256, (rows, columns // 2), dice, torch.uint8),
        ".weight_scale": (40 * (1 + torch.rand(rows, columns // 16, generator=dice))).to(torch.float8_e4m3fn),
        ".weight_global_scale": 3000 * (1 + torch.rand(1, generator=dice)),
    }


def _mxfp4(rows: int, columns: int, dice: torch.Generator) -> Parts:
    return {
        ".weight_packed": integers(0, 256, (rows, columns // 2), dice, torch.uint8),
        ".weight_scale": integers(117, 122, (rows, columns // 32), dice, torch.uint8),
    }


def _optimised(rows: int, columns: int, dice: torch.Generator) -> Parts:
    """NVFP4 of ModelOpt; the further scale is a power of two, so that to divide is to multiply."""
    drawn = _nvfp4(rows, columns, dice)
    return {
        ".weight": drawn[".weight_packed"],
        ".weight_scale": drawn[".weight_scale"],
        ".weight_scale_2": torch.tensor(2.0**-11),
        ".input_scale": torch.tensor(0.5),
    }


def _as_listed(parts: Parts) -> torch.Tensor:
    as_listed = {
        ".weight_packed": parts[".weight"],
        ".weight_scale": parts[".weight_scale"],
        ".weight_global_scale": 1 / parts[".weight_scale_2"].reshape(1),
    }
    return NVFP4.decode(as_listed)


def _two_exponents(rows: int, columns: int, dice: torch.Generator) -> Parts:
    drawn = _mxfp4(rows, columns, dice)
    return {
        ".weight": drawn[".weight_packed"].view(torch.int8),
        ".scale": drawn[".weight_scale"].view(torch.float8_e8m0fnu),
    }


def transposed(
    name: str, version: int, group: int, shape: tuple[int, int], shuffled: bool, bits: int = 4
) -> Format:
    """GPTQ, decoded value by value by its published formula: its library is not made for a CPU."""

    step, last = 32 // bits, (1 << bits) - 1

    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        groups = up(columns, group)
        parts = {
            ".qweight": words((columns // step, rows), dice),
            ".qzeros": words((groups, rows // step), dice),
            ".scales": floats((groups, rows), dice, torch.float16),
        }
        if shuffled:
            order = torch.randperm(columns, generator=dice)
            parts[".g_idx"] = (torch.arange(columns) // group)[order].to(torch.int32)
        return parts

    def decode(parts: Parts) -> torch.Tensor:
        codes, zeros, scales = (parts[name].tolist() for name in (".qweight", ".qzeros", ".scales"))
        high, wide = step * len(codes), len(codes[0])
        of = parts[".g_idx"].tolist() if ".g_idx" in parts else [row // group for row in range(high)]
        found = torch.empty(wide, high)
        for row in range(high):
            for column in range(wide):
                code = codes[row // step][column] >> bits * (row % step) & last
                zero = zeros[of[row]][column // step] >> bits * (column % step) & last
                zero = zero if version == 2 else (zero + 1) & last
                found[column, row] = (code - zero) * scales[of[row]][column]
        return found

    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": False}
    return Format(
        name, said | ({"checkpoint_format": "gptq_v2"} if version == 2 else {}), draw, decode, shape
    )


def _awq(rows: int, columns: int, dice: torch.Generator) -> Parts:
    return {
        ".qweight": words((columns, rows // 8), dice),
        ".qzeros": words((columns // 32, rows // 8), dice),
        ".scales": floats((columns // 32, rows), dice, torch.bfloat16),
    }


def _by_its_converter(parts: Parts) -> torch.Tensor:
    converter = AutoAWQConverter(group_size=32, ignore=())
    made = converter.process({f"x{name}": values.clone() for name, values in parts.items()})
    return by_name("int4 groups of 32 with zero points").decode(
        {name.removeprefix("x"): values for name, values in made.items()}
    )


def mapped(name: str, kind: str, shape: tuple[int, int], nested: bool) -> Format:
    """What bitsandbytes saves, decoded value by value by its published formula.

    The library is 125 MB, so it is not installed for this: `digest` is SHA-256 of what its version 0.50.2
    makes of the same tensors, which are drawn without dice.
    """

    def draw(rows: int, columns: int, dice: torch.Generator) -> Parts:
        size = rows * columns
        blocks = up(size, 64)
        state = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [rows, columns]}
        parts = {
            ".weight": (torch.arange(up(size, 2)) * 7919 % 251).to(torch.uint8)[:, None],
            ".weight.absmax": (1 + torch.arange(blocks) * 31 % 97) / 1024,
            ".weight.quant_map": torch.tensor(TABLES[kind]),
        }
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0546875}
            parts |= {
                ".weight.absmax": (torch.arange(blocks) * 89 % 256).to(torch.uint8),
                ".weight.nested_absmax": (1 + torch.arange(up(blocks, 256))) / 512,
                ".weight.nested_quant_map": (torch.arange(256) * 7 % 256 - 101) / 256,
            }
        text = json.dumps(state).encode()
        return parts | {
            f".weight.quant_state.bitsandbytes__{kind}": torch.tensor(list(text), dtype=torch.uint8)
        }

    def decode(parts: Parts) -> torch.Tensor:
        state = json.loads(bytes(parts[f".weight.quant_state.bitsandbytes__{kind}"].tolist()))
        stored = parts[".weight"].reshape(-1).tolist()
        values, largest = parts[".weight.quant_map"], parts[".weight.absmax"]
        if nested:
            of = torch.tensor([block // 256 for block in range(len(largest))])
            inner = parts[".weight.nested_quant_map"][largest.int()]
            largest = inner * parts[".weight.nested_absmax"][of] + state["nested_offset"]
        rows, columns = state["shape"]
        codes = [stored[n // 2] >> (0 if n % 2 else 4) & 15 for n in range(rows * columns)]
        found = torch.stack([values[code] * largest[n // 64] for n, code in enumerate(codes)])
        return found.reshape(rows, columns)

    return Format(name, {"quant_method": "bitsandbytes", "load_in_4bit": True}, draw, decode, shape)


def blocks_of_experts(shape: tuple[int, int, int], dice: torch.Generator) -> Parts:
    """Of a weight [E, I, O]."""
    experts, high, wide = shape
    return {
        "_blocks": integers(0, 256, (experts, wide, high // 32, 16), dice, torch.uint8),
        "_scales": integers(117, 122, (experts, wide, high // 32), dice, torch.uint8),
    }


def experts_by_library(parts: Parts, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    found: torch.Tensor = convert_moe_packed_tensors(parts["_blocks"], parts["_scales"], dtype=dtype)
    return found


FP8 = block_float8("fp8 blocks", (128, 128), (300, 260), torch.float32)
NVFP4 = listed(
    "nvfp4", "nvfp4-pack-quantized", _nvfp4, num_bits=4, type="float", strategy="tensor_group", group_size=16
)
_EXPONENTS = listed(
    "mxfp4", "mxfp4-pack-quantized", _mxfp4, num_bits=4, type="float", strategy="group", group_size=32,
    scale_dtype="torch.uint8", zp_dtype="torch.uint8",
)  # fmt: skip
_INT4 = {"num_bits": 4, "type": "int"}
MAPPED = (
    mapped("nf4", "nf4", (9, 15), nested=False),
    mapped("nf4 with double quantization", "nf4", (131, 129), nested=True),
    mapped("fp4 of bitsandbytes", "fp4", (16, 64), nested=True),
)
FORMATS = (
    FP8,
    block_float8("fp8 blocks of another size", (16, 24), (40, 50), torch.bfloat16),
    block_float8("fp8 576 rows", (128, 128), (576, 256), torch.float32),
    with_exponents((200, 140)),
    listed(
        "fp8 tensor", "float-quantized", _with_scale(lambda rows, columns: (1,), torch.float32),
        num_bits=8, type="float", strategy="tensor",
    ),
    listed(
        "fp8 channel", "float-quantized", _with_scale(lambda rows, columns: (rows, 1), torch.bfloat16),
        num_bits=8, type="float", strategy="channel",
    ),
    listed(
        "fp8 weight only", "naive-quantized", _with_scale(lambda rows, columns: (rows, 1), torch.float32),
        num_bits=8, type="float", strategy="channel",
    ),
    listed(
        "fp8 listed blocks", "float-quantized",
        _with_scale(lambda rows, columns: (up(rows, 16), up(columns, 16)), torch.float32),
        num_bits=8, type="float", strategy="block", block_structure=[16, 16],
    ),
    listed(
        "int8", "int-quantized", _int8, num_bits=8, type="int", strategy="channel", symmetric=False,
    ),
    listed("int4 groups", "pack-quantized", _packed(4, 32, False), strategy="group", group_size=32, **_INT4),
    listed(
        "int4 groups with zero points", "pack-quantized", _packed(4, 16, True), (44, 80),
        strategy="group", group_size=16, symmetric=False, **_INT4,
    ),
    listed(
        "int4 groups of 32 with zero points", "pack-quantized", _packed(4, 32, True),
        strategy="group", group_size=32, symmetric=False, **_INT4,
    ),
    listed("int4 channels", "pack-quantized", _packed(4, None, False), (5, 37), strategy="channel", **_INT4),
    listed(
        "int8 packed", "pack-quantized", _packed(8, 32, False),
        num_bits=8, type="int", strategy="group", group_size=32,
    ),
    NVFP4,
    _EXPONENTS,
    Format("nvfp4 of ModelOpt", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, _optimised, _as_listed),
    Format(
        "fp4 with e8m0", {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        _two_exponents,
        lambda parts: _EXPONENTS.decode(
            {".weight_packed": parts[".weight"].view(torch.uint8),
             ".weight_scale": parts[".scale"].view(torch.uint8)}
        ),
    ),
    transposed("gptq", 1, 32, (24, 80), shuffled=False),
    transposed("gptq with desc_act", 1, 16, (24, 48), shuffled=True),
    transposed("gptq of version 2", 2, 16, (24, 48), shuffled=False),
    transposed("gptq of 8 bits", 1, 16, (24, 48), shuffled=False, bits=8),
    Format(
        "awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        _awq, _by_its_converter, (24, 64),
    ),
    *MAPPED,
)  # fmt: skip


def by_name(name: str) -> Format:
    return next(form for form in FORMATS if form.name == name)
