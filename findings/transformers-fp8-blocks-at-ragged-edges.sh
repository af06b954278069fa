#!/usr/bin/env bash
# Version: transformers==5.23.0 torch==2.13.0 accelerate==1.15.0
#
# A checkpoint in the block FP8 format of DeepSeek-V3 (`weight_scale_inv`, blocks of 128 x 128, those at
# the edges smaller), of a small Qwen3-MoE whose experts are 192 wide: their products have 192 rows or
# columns, so two blocks of 128 and 64. It is loaded on a CPU, where transformers decodes such weights.
#
# Expected: each value is its code times the scale of the block of 128 that it lies in, as the config
# says and as compressed-tensors decodes it; or an error.
# seen: no error, no warning about it, and an empty loading report. Blocks of 96 were taken (192 rows by 2
# scales), so rows and columns 96 to 127 have the scale of their neighbours. Weights of 128 and 256 are
# right.
#
# Who is hit: whoever loads block FP8 on a CPU, or with dequantize=True, of a model with a width that
# 128 does not divide and the number of its blocks does (192, 448, 960, ...); other such widths
# (DeepSeek-V3's 576) end in an error.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0 torch==2.13.0 accelerate==1.15.0
cd "$work"

cat > check.py <<'PY'
import json

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

BLOCK = 128
torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=64,
    hidden_size=256,
    moe_intermediate_size=192,
    intermediate_size=192,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=128,
    num_experts=2,
    num_experts_per_tok=1,
)
Qwen3MoeForCausalLM(config).save_pretrained("fp8")


def spread(scale, shape):
    """The scale of each value: blocks of 128 from the start, smaller at the edges."""
    wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return wide[: shape[0], : shape[1]]


stored, wanted = {}, {}
for key, weight in load_file("fp8/model.safetensors").items():
    if not key.endswith("_proj.weight"):
        stored[key] = wanted[key] = weight
        continue
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    weight = weight * spread(1 + torch.arange(rows * columns).reshape(rows, columns), weight.shape)
    scale = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block = weight[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            scale[row, column] = block.abs().max() / 448
    codes = (weight / spread(scale, weight.shape)).to(torch.float8_e4m3fn)
    stored[key], stored[f"{key}_scale_inv"] = codes, scale
    wanted[key] = codes.float() * spread(scale, weight.shape)
save_file(stored, "fp8/model.safetensors", {"format": "pt"})
said = json.load(open("fp8/config.json"))
said["quantization_config"] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [BLOCK, BLOCK],
    "activation_scheme": "dynamic",
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
}
json.dump(said, open("fp8/config.json", "w"))

model, report = Qwen3MoeForCausalLM.from_pretrained("fp8", dtype=torch.float32, output_loading_info=True)
print("report:", {kind: sorted(found) for kind, found in report.items() if found})
experts = "model.layers.0.mlp.experts"
found = {"model.layers.0.self_attn.q_proj.weight": model.model.layers[0].self_attn.q_proj.weight}
for number in range(2):
    gate, up = model.model.layers[0].mlp.experts.gate_up_proj[number].chunk(2)
    down = model.model.layers[0].mlp.experts.down_proj[number]
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        found[f"{experts}.{number}.{name}_proj.weight"] = weight
wrong = {}
for key, weight in found.items():
    # The library may have rounded to bfloat16 on the way.
    bad = ~torch.isclose(weight.detach().float(), wanted[key], rtol=2**-7, atol=1e-8)
    wrong[key] = (sorted(set(bad.nonzero()[:, 0].tolist())), sorted(set(bad.nonzero()[:, 1].tolist())))
    rows, columns = wrong[key]
    print(
        key.removeprefix("model.layers.0."), list(weight.shape), "wrong:", int(bad.sum()),
        f"in rows {rows[0]}-{rows[-1]}, columns {columns[0]}-{columns[-1]}" if rows else "",
    )
assert not any(report.values()), "the report says something now"
assert not wrong["model.layers.0.self_attn.q_proj.weight"][0], "whole blocks are wrong too"
for number in range(2):
    for name in ("gate", "up"):
        assert wrong[f"{experts}.{number}.{name}_proj.weight"][0] == list(range(96, 128)), "other rows"
    assert wrong[f"{experts}.{number}.down_proj.weight"][1] == list(range(96, 128)), "other columns"
PY
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= "$work/venv/bin/python" check.py 2>&1 | grep -v "Loading weights\|Writing"
echo "finding: loaded on a CPU, block FP8 weights of 192 rows are decoded with blocks of 96 instead of the 128 of the config, without a word"
