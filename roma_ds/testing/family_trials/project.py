"""A run on a tiny random model: questions of all kinds in the words of its tokenizer, and a config."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roma_ds.testing.tiny_models import WORDS, save_tiny, save_tokenizer

DEPTH = 6
NUMBERED = 180
"""Words `w0`, `w1`, ... of the tokenizer."""

CONFIG = """\
model: {{path: model, dtype: float32}}
data: {{train: [{{path: letters.jsonl}}, {{path: texts.jsonl, answer: text}}, {{path: free.jsonl}}]}}
embed: {{model: demo}}
roma: {{layers: {layers}, lambda_warmup: 0.0}}
train: {{epochs: 2, batch: 8, micro_batch: 4, lr: 1.0e-3, log_every: 1}}
eval:
  tasks:
    - {{name: letters, path: letters-test.jsonl}}
    - {{name: texts, path: texts-test.jsonl, scoring: cloze}}
  batch_size: 4
controls: []
deepspeed: zero0
output_dir: out
"""


def write_project(folder: Path, model_type: str, layers: str) -> Path:
    """Write a tiny model of a type, data and a config into `folder`; returns the config.

    layers: `roma.layers`. Prompts have 1 to some 50 tokens, answers 1 to 4: shorter and longer than windows
    and choices of keys are.
    """
    # Larger than the usual range, as it is in those tiny models whose values are not held fast.
    model = save_tiny(folder / "model", model_type, layers=DEPTH, initializer_range=0.1)
    if not _reads_words(model):
        save_tokenizer(model, ("Ġ", *sorted(set("".join(WORDS)))))
    source = random.Random(0)
    _write(folder / "letters.jsonl", [_letters(source, row) for row in range(14)])
    _write(folder / "texts.jsonl", [_texts(source, row) for row in range(6)])
    _write(folder / "free.jsonl", [_free(source, row) for row in range(6)])
    _write(folder / "letters-test.jsonl", [_letters(source, row) for row in range(100, 108)])
    _write(folder / "texts-test.jsonl", [_texts(source, row) for row in range(100, 105)])
    config = folder / "run.yaml"
    config.write_text(CONFIG.format(layers=layers))
    return config


def _reads_words(model: Path) -> bool:
    """Whether transformers takes the tokenizer as it is saved: for some types it takes one of bytes."""
    from transformers import AutoTokenizer

    return bool(AutoTokenizer.from_pretrained(model)("w0")["input_ids"])


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _words(source: random.Random, count: int) -> str:
    return " ".join(f"w{source.randrange(NUMBERED)}" for _ in range(count))


def _letters(source: random.Random, row: int) -> dict[str, Any]:
    """Four options of one word, of which a letter is the answer."""
    choices = [f"w{number}" for number in source.sample(range(NUMBERED), 4)]
    question = _words(source, source.randrange(1, 24))
    return {"id": f"l{row}", "question": question, "choices": choices, "answer": source.randrange(4)}


def _texts(source: random.Random, row: int) -> dict[str, Any]:
    """Three options of one to three words, which are answers themselves."""
    choices = [_words(source, 1 + (row + turn) % 3) for turn in range(3)]
    question = _words(source, source.randrange(1, 24))
    return {"id": f"t{row}", "question": question, "choices": choices, "answer": source.randrange(3)}


def _free(source: random.Random, row: int) -> dict[str, Any]:
    """A text that is read as it stands, the first of a single word, and an answer of one to four words."""
    prompt = _words(source, 1 + 5 * row)
    return {"id": f"f{row}", "prompt": prompt, "answer": _words(source, 1 + row % 4)}
