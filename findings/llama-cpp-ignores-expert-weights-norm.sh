#!/usr/bin/env bash
# Version: cyllama==0.2.18 (llama.cpp b9190) gguf==0.19.0 numpy==2.4.6
#
# Two GGUF files of the architecture qwen3moe with the same weights: `qwen3moe.expert_weights_norm`, GGUF's
# key for whether the weights of the chosen experts are divided by their sum, is true in one and false in the
# other. Then the same for olmoe.
#
# Expected: other logits, as a Qwen3-MoE or OLMoE checkpoint gives in transformers with `norm_topk_prob`
# true and false.
# seen: `largest difference 0.0` for both. llama.cpp divides for qwen3moe and does not for olmoe, whatever
# the file says; by its source the key is read for other architectures (deepseek2, glm4moe).
#
# Who is hit: whoever serves a model of these types that was trained with the other setting, as a Qwen3-MoE
# with transformers' default `norm_topk_prob=False`: it loads, runs, and routes with other weights.
# A way out: compare a few logits with the library's before a GGUF file is served.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile --only-binary=:all: cyllama==0.2.18 gguf==0.19.0 numpy==2.4.6
cd "$work"

cat > check.py <<'PY'
import gguf
import numpy as np
from cyllama.llama import llama_cpp

HIDDEN, HEADS, EXPERTS, CHOSEN, WIDTH, LAYERS, WORDS = 32, 4, 8, 2, 16, 2, 64
IDS = [5, 6, 7, 8, 9]


class Model(llama_cpp.LlamaModel):
    """cyllama asks its model for n_vocab, which it has not."""

    @property
    def n_vocab(self):
        return self.get_vocab().n_vocab


def write(path, architecture, normed):
    source = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HIDDEN // HEADS)
    writer.add_value_length(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_weights_norm(normed)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("no_vocab")

    def add(name, *shape):
        writer.add_tensor(f"{name}.weight", source.normal(size=shape).astype(np.float32))

    add("token_embd", WORDS, HIDDEN)
    add("output_norm", HIDDEN)
    add("output", WORDS, HIDDEN)
    for block in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{block}.{name}", HIDDEN)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}", HIDDEN, HIDDEN)
        for name in ("attn_q_norm", "attn_k_norm"):
            add(f"blk.{block}.{name}", HIDDEN if architecture == "olmoe" else HIDDEN // HEADS)
        add(f"blk.{block}.ffn_gate_inp", EXPERTS, HIDDEN)
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            add(f"blk.{block}.{name}", EXPERTS, WIDTH, HIDDEN)
        add(f"blk.{block}.ffn_down_exps", EXPERTS, HIDDEN, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path):
    wanted = llama_cpp.LlamaModelParams()
    wanted.n_gpu_layers = 0
    model = Model(path, wanted, verbose=False)
    found = llama_cpp.LlamaContextParams()
    found.n_ctx = found.n_batch = 64
    context = llama_cpp.LlamaContext(model, found, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(IDS), embd=0, n_seq_max=1)
    batch.set_batch(IDS, 0, True)
    context.decode(batch)
    return np.array([list(context.get_logits_ith(place)) for place in range(len(IDS))])


llama_cpp.llama_backend_init()
for architecture in ("qwen3moe", "olmoe"):
    for normed in (False, True):
        write(f"{architecture}-{normed}.gguf", architecture, normed)
    one, other = (logits(f"{architecture}-{normed}.gguf") for normed in (False, True))
    print(architecture, "largest logit", abs(one).max(), "largest difference", abs(one - other).max())
    assert abs(one).max() > 0 and np.isfinite(one).all()
    assert np.array_equal(one, other), f"{architecture} now reads expert_weights_norm"
PY
"$work/venv/bin/python" check.py 2> said.txt || { tail -20 said.txt; exit 1; }
echo "finding: llama.cpp gives a qwen3moe or olmoe file the same logits whether its expert_weights_norm is true or false: whether the chosen experts' weights are divided by their sum is in its own code"
