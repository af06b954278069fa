"""A tiny project with questions of all kinds: letters, texts of several tokens, free answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.projects import Project, make_project, word_rows, write_rows

CONFIG = """\
model: {{path: model, dtype: {dtype}}}
data:
  train: [{{path: letters.jsonl}}, {{path: texts.jsonl, answer: text}}, {{path: free.jsonl}}]
  max_tokens: 20
embed: {{model: demo}}
roma: {{layers: last2}}
train: {{epochs: 2, micro_batch: 4, lr: 1.0e-3, log_every: 5}}
eval: {{tasks: [{{name: words, path: test.jsonl}}], batch_size: 4}}
controls: []
output_dir: out
"""


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions with options of one to four tokens."""
    return [
        {**row, "choices": [" ".join([text] * (1 + n)) for n, text in enumerate(row["choices"])]}
        for row in rows
    ]


def free(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions with a text for an answer."""
    return [
        {"id": row["id"], "question": row["question"], "answer": " ".join(row["choices"][: 1 + place % 3])}
        for place, row in enumerate(rows)
    ]


def mixed_project(folder: Path, family: str, dtype: str) -> Project:
    """40 questions of all kinds, some longer than data.max_tokens."""
    project = make_project(folder, family, dtype)
    write_rows(folder / "letters.jsonl", word_rows(16, 0, 20))
    write_rows(folder / "texts.jsonl", texts(word_rows(12, 100, 20)))
    write_rows(folder / "free.jsonl", free(word_rows(12, 200, 20)))
    write_rows(folder / "test.jsonl", texts(word_rows(9, 1000, 20)))
    project.config.write_text(CONFIG.format(dtype=dtype))
    return project


def weights(model: Path) -> dict[str, Any]:
    """The tensors of a checkpoint as float32 arrays, by key."""
    from safetensors.torch import load_file

    files = [load_file(path) for path in sorted(model.glob("*.safetensors"))]
    return {name: value.float().numpy() for file in files for name, value in file.items()}
