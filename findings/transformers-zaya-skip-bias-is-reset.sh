#!/usr/bin/env bash
# Version: transformers==5.23.0 torch==2.13.0
#
# A Zaya model whose routers' `balancing_biases` were changed, saved with save_pretrained and loaded
# with from_pretrained. The biases are a buffer that is saved; the last one belongs to the class
# that skips all experts, and is -1 in a new model.
#
# Expected: the loaded model has the saved biases and gives the saved model's logits; the loading
# report names nothing missing or mismatched.
# seen: the file holds the last bias as saved (0.5), the report is empty, all other biases are as
# saved, and the last one of every layer is -1 again. Tokens that skipped no longer do, and logits
# differ.
#
# Who is hit: whoever trains or edits the biases of such routers, or balances the skip class, and
# loads the checkpoint again; engines that read the file itself disagree with the library.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0 torch==2.13.0
cd "$work"

cat > check.py <<'PY'
import torch
from safetensors.torch import load_file
from transformers import ZayaConfig, ZayaForCausalLM

torch.manual_seed(0)
config = ZayaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=32,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=1,
    router_hidden_size=16,
)
model = ZayaForCausalLM(config).eval()
name = "model.layers.0.mlp.gate.balancing_biases"
print("new:", model.get_buffer(name).tolist())
for key, values in model.named_buffers():
    if key.endswith("balancing_biases"):
        values.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
model.save_pretrained("saved")
stored = load_file("saved/model.safetensors")
key = next(one for one in stored if one.endswith("balancing_biases"))
print("file:", key, stored[key].tolist())
again, report = ZayaForCausalLM.from_pretrained("saved", output_loading_info=True)
loaded = again.get_buffer(name)
print("loaded:", loaded.tolist())
print({kind: sorted(found) for kind, found in report.items() if found})
ids = torch.arange(3, 23)[None]
with torch.no_grad():
    difference = (model(ids).logits - again.eval()(ids).logits).abs().max()
print("largest difference of logits:", float(difference))
assert torch.allclose(stored[key], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
assert torch.allclose(loaded[:4], stored[key][:4]), "other biases are no longer as saved"
assert float(loaded[4]) == -1.0, "the last bias is as saved now"
assert not any(report.values()), "the report says something now"
assert difference > 0
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py 2>&1 | grep -v "Loading weights\|Writing"
echo "finding: loading a Zaya checkpoint sets the bias of the routers' skip class to -1 whatever the file holds, and the loading report is empty"
