#!/usr/bin/env bash
# Version: lm_eval==0.4.13 transformers==5.23.0 torch==2.13.0
#
# `generate_until` of the class `hf` with a stop text in `until` that is one of the tokenizer's
# special tokens and not its end-of-text token, as `<|im_end|>` in the harness's own gsm8k task. The
# model says "b c <|im_end|> x y z" behind "a", by a fixed table of next tokens.
#
# Expected: "b c" whatever else is asked: a text ends at its first stop sequence.
# seen: "b c" with batch_size=1. In a batch with a question whose answer goes on longer it is
# "b c x y z": the stop ends a batch only when all of its answers have had it; the rest is cut off at
# the stop text afterwards, but in a text that is decoded without special tokens and has none.
# A stop text of usual characters gives the same in both.
#
# Who is hit: chat models whose end of a turn is a stop of the task and not their end-of-text token:
# filters such as "the last number" then read what stands behind the answer, more often the larger
# the batch.
# A way out: the token in the model's generation config as one of its `eos_token_id`.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile "lm_eval[hf]==0.4.13" transformers==5.23.0 torch==2.13.0
cd "$work"

cat > check.py <<'PY'
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<pad>", "<unk>", "<eos>", "<|im_end|>", *"abcxyzk"]
inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token="<pad>",
    unk_token="<unk>",
    eos_token="<eos>",
    additional_special_tokens=["<|im_end|>"],
)
size = len(words)
config = LlamaConfig(
    vocab_size=size,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
)
model = LlamaForCausalLM(config).eval()
follows = {"a": "b", "b": "c", "c": "<|im_end|>", "<|im_end|>": "x", "x": "y", "y": "z", "z": "<eos>", "k": "k"}
with torch.no_grad():
    # The layer adds nothing: what is read decides alone what comes next.
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    model.model.layers[0].mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(size, 16))
    model.lm_head.weight.zero_()
    for one, other in follows.items():
        model.lm_head.weight[words.index(other), words.index(one)] = 1.0


def texts(until, batch_size):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=32)
    settings = {"until": [until], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, (word, settings), place) for place, word in enumerate("ak")]
    return harness.generate_until(asked, disable_tqdm=True)


alone, together = texts("<|im_end|>", 1)[0].split(), texts("<|im_end|>", 2)[0].split()
print("one at a time:", alone, "in a batch:", together)
assert alone == ["b", "c"], alone
assert together == ["b", "c", "x", "y", "z"], together
plain = [texts("x", size)[0].split() for size in (1, 2)]
print("a stop of usual characters:", plain)
assert plain[0] == plain[1] == ["b", "c"]
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: a stop text that is a special token does not cut an answer of lm_eval's hf in a batch: the text depends on the batch size"
