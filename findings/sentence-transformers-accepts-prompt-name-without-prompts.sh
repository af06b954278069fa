#!/usr/bin/env bash
# Version: sentence-transformers==6.2.0 transformers==5.23.0 tokenizers==0.23.3 torch==2.13.0
#
# encode(..., prompt_name="query") on a model that was made, or saved, without any prompts.
#
# Expected: a ValueError that the model has no prompt of that name, as for any other name.
# seen, `prompts: {'query': '', 'document': ''}` and `query same as no prompt: True`: a model
# without prompts has two empty ones, so "query" and "document" are taken and do nothing, while
# seen for "passage", `Prompt name 'passage' not found in the configured prompts dictionary with
# keys ['query', 'document'].`
#
# Who is hit: retrieval with models that were trained with prefixes but whose folder names no
# prompts: queries and passages are embedded without their prefixes and only the ranks get worse.
# A way out: check that model.prompts["query"] is not empty, or pass prompt="query: " itself.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile sentence-transformers==6.2.0 transformers==5.23.0 \
    tokenizers==0.23.3 torch==2.13.0
cd "$work"

cat > check.py <<'PY'
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("[UNK]", "query", ":", "who", "wrote", "this")
TEXT = "who wrote this"


def build(**options):
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    embedding = StaticEmbedding(tokenizer, embedding_dim=8)
    return SentenceTransformer(modules=[embedding], device="cpu", **options)


build().save_pretrained("model")
model = SentenceTransformer("model", device="cpu")
print("prompts:", model.prompts)
plain = model.encode(TEXT)
for name in ("query", "document"):
    same = np.array_equal(plain, model.encode(TEXT, prompt_name=name))
    print(f"{name} same as no prompt: {same}")
    assert same
try:
    model.encode(TEXT, prompt_name="passage")
except ValueError as error:
    print(error)
else:
    raise SystemExit("an unknown prompt name is now accepted")

prompted = build(prompts={"query": "query: "}).encode(TEXT, prompt_name="query")
assert not np.array_equal(plain, prompted)
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: encode(prompt_name=\"query\") on a sentence-transformers model without prompts is accepted and does nothing, where any other name raises"
