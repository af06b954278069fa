#!/usr/bin/env bash
# Version: mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 torch==2.13.0
#
# An OLMoE checkpoint in bfloat16, its config says so, in which the router of one layer of four is stored in
# float32, is given to mlx_lm.load.
#
# Expected: a model in bfloat16, as transformers loads the same folder.
# seen: `router mlx.core.float32 logits mlx.core.float32`: weights keep the type of their file, and behind
# that router hidden states, keys, values and logits are float32. Qwen3-MoE, which casts behind its experts,
# stays in bfloat16.
#
# Who is hit: whoever serves a checkpoint with float32 routers by MLX (some publishers and tools keep them
# so): twice the memory for keys and values of the later layers, and slower layers, with no word.
# A way out: store the routers in bfloat16, or pass the checkpoint through mlx_lm.convert --dtype bfloat16.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 torch==2.13.0
cd "$work"

cat > check.py <<'PY'
import sys

import mlx.core as mx
import torch
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM

GATE = "model.layers.2.mlp.gate.weight"
torch.manual_seed(0)
config = OlmoeConfig(
    hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, num_experts=8, num_experts_per_tok=2, vocab_size=128, pad_token_id=0,
)
OlmoeForCausalLM(config).to(torch.bfloat16).save_pretrained("bfloat16")
tensors = load_file("bfloat16/model.safetensors")
OlmoeConfig.from_pretrained("bfloat16").save_pretrained("float32-router")
save_file({**tensors, GATE: tensors[GATE].float()}, "float32-router/model.safetensors", metadata={"format": "pt"})

stock = AutoModelForCausalLM.from_pretrained("float32-router")
print("transformers: router", stock.get_parameter(GATE).dtype, "head", stock.lm_head.weight.dtype)
assert stock.get_parameter(GATE).dtype == stock.lm_head.weight.dtype == torch.bfloat16

mx.set_default_device(mx.cpu)
found = {}
for folder in ("bfloat16", "float32-router"):
    model = load_model(Path(folder))[0]
    cache = make_prompt_cache(model)
    logits = model(mx.array([[5, 6, 7, 8]]), cache=cache)
    keys = [layer.keys.dtype for layer in cache]
    found[folder] = (model.model.layers[2].mlp.gate.weight.dtype, logits.dtype, *keys)
    print("mlx_lm:", folder, "router", found[folder][0], "logits", logits.dtype, "keys by layer", *keys)
assert set(found["bfloat16"]) == {mx.bfloat16}
if found["float32-router"] != (mx.float32, mx.float32, *[mx.bfloat16] * 3, mx.float32):
    sys.exit("mlx_lm now keeps such a model in bfloat16")
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: mlx_lm.load keeps a float32 router of a bfloat16 OLMoE checkpoint in float32, and behind it hidden states, keys, values and logits are float32"
