#!/usr/bin/env bash
# Version: mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 torch==2.13.0
#
# An OLMoE checkpoint whose rope_theta is 500000, saved by transformers 5, which writes it into config.json as
# `rope_parameters: {rope_theta: 500000.0, ...}`, is given to mlx_lm's load_model. Then the same folder with
# `rope_theta: 500000.0` beside it.
#
# Expected: the logits of transformers both times.
# seen: `as saved: off by 0.1582222 of 0.7`, `rope_theta beside it: off by 0.0000003 of 0.7`. mlx_lm 0.32.2 looks for
# rope_theta in the first level alone and takes 10000 where it is not there; no error, no warning. (Where
# its default is none, as for Qwen3-MoE, the folder is refused.)
#
# Who is hit: whoever fine-tunes or merges a model with transformers 5 and serves what `save_pretrained` wrote
# by MLX: all positions are rotated by other angles. Published configs of before have both.
# A way out: write rope_theta into the first level of config.json.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 transformers==5.23.0 torch==2.13.0
cd "$work"

cat > check.py <<'PY'
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM

torch.manual_seed(0)
config = OlmoeConfig(
    hidden_size=64, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    num_experts=8, num_experts_per_tok=2, vocab_size=128, pad_token_id=0,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
OlmoeForCausalLM(config).save_pretrained("model")
ids = list(range(5, 45))
with torch.no_grad():
    wanted = AutoModelForCausalLM.from_pretrained("model")(torch.tensor([ids])).logits[0].numpy()
file = Path("model/config.json")
saved = json.loads(file.read_text())
print("rope_theta" in saved, saved["rope_parameters"])
mx.set_default_device(mx.cpu)
off = []
for title, more in (("as saved", {}), ("rope_theta beside it", {"rope_theta": 500000.0})):
    file.write_text(json.dumps({**saved, **more}))
    found = np.array(load_model(Path("model"))[0](mx.array([ids]))[0])
    off.append(float(abs(found - wanted).max()))
    print(f"{title}: off by {off[-1]:.7f} of {abs(wanted).max():.1f}")
assert off[1] < 1e-5
if off[0] < 1e-3:
    sys.exit("mlx_lm now reads rope_parameters")
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: mlx_lm takes rope_theta 10000 for an OLMoE checkpoint saved by transformers 5, whatever its rope_parameters say"
