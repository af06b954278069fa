#!/usr/bin/env bash
# Version: transformers==5.23.0 tokenizers==0.23.3
#
# A model folder with a config.json and no tokenizer files, as a save of the model alone leaves
# it, is given to AutoTokenizer.from_pretrained.
#
# Expected: an error that the folder has no tokenizer files, as for a Llama folder (ValueError).
# seen for OLMoE, `GPTNeoXTokenizer {'<|endoftext|>': 0, '<|padding|>': 1} [] ''`: a tokenizer of
# two special tokens that encodes every text to no tokens at all, with no warning. GPT-2 and Qwen2
# folders do the same, with a vocabulary of one token.
#
# Who is hit: whoever forgets to save or copy the tokenizer beside a checkpoint. Training then runs
# on padding only, or evaluation scores empty prompts, and nothing says why.
# A way out: check len(tokenizer) and the encoding of a short text after loading.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0 tokenizers==0.23.3
cd "$work"

cat > check.py <<'PY'
import os

from transformers import AutoTokenizer, GPT2Config, LlamaConfig, OlmoeConfig, Qwen2Config

TEXT = "The capital of France is Paris."


def load(config):
    folder = config.model_type
    config.save_pretrained(folder)
    assert os.listdir(folder) == ["config.json"]
    return AutoTokenizer.from_pretrained(folder)


try:
    load(LlamaConfig())
except ValueError as error:
    print("llama: ValueError:", str(error).splitlines()[0])
else:
    raise SystemExit("a Llama folder without tokenizer files now loads too")

for config, size in ((OlmoeConfig(), 2), (GPT2Config(), 1), (Qwen2Config(), 1)):
    tokenizer = load(config)
    ids = tokenizer(TEXT)["input_ids"]
    vocabulary = dict(sorted(tokenizer.get_vocab().items()))
    print(type(tokenizer).__name__, vocabulary, ids, repr(tokenizer.decode(ids)))
    assert len(tokenizer) == size and ids == []
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: AutoTokenizer on an OLMoE, GPT-2 or Qwen2 folder with only a config.json gives a tokenizer that encodes every text to nothing, where a Llama folder raises"
