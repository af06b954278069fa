"""Benchmark files in the form of the real ones, made of a few words: for machines that have no real ones."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = (
    "the a of heat water light plant cell rock planet Anna's Tom moves grows slowly, because 3.5 it's "
    "café naïve “quoted” (twice) top-down which under between never 100% river, stone; cloud: energy"
).split()
FILES = {
    "arc_easy": "test",
    "arc_challenge": "test",
    "piqa": "validation",
    "hellaswag": "validation",
    "winogrande": "validation",
    "boolq": "validation",
    "mmlu": "test",
}


def _words(source: random.Random, least: int, most: int) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(least, most)))


def _row(task: str, place: int, source: random.Random) -> dict[str, Any]:
    options = {"arc_easy": source.randint(3, 5), "piqa": 2, "winogrande": 2}.get(task, 4)
    row: dict[str, Any] = {
        "id": f"{task}-{place}",
        "question": _words(source, 6, 20).capitalize(),
        "choices": [_words(source, 1, 9) for _ in range(options)],
        "answer": source.randrange(options),
    }
    if task == "hellaswag":
        row["question"] = f"Playing outside: {row['question']}"
    if task == "winogrande":
        row |= {
            "question": f"{_words(source, 3, 8)} _ {_words(source, 2, 6)}.",
            "choices": ["Anna", "the stone"],
        }
    if task == "boolq":
        row |= {"question": row["question"].lower() + "?", "passage": _words(source, 20, 60)}
        row |= {"choices": ["no", "yes"], "answer": source.randrange(2)}
    if task == "mmlu":
        row["subject"] = "anatomy"
    return row


def _texts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (row["question"], *row["choices"], row.get("passage", ""))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def write_benchmarks(folder: Path, rows: int, seed: int = 0) -> Path:
    """`NAME/SPLIT.jsonl.gz` of each task, and a tokenizer of bytes trained on them; returns `folder`."""
    source = random.Random(seed)
    everything: list[dict[str, Any]] = []
    splits = [*((task, split, rows) for task, split in FILES.items()), ("mmlu", "dev", 5)]
    for task, split, count in splits:
        made = [_row(task, place, source) for place in range(count)]
        _write(folder / task / f"{split}.jsonl.gz", "".join(json.dumps(row) + "\n" for row in made))
        everything += made
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_texts(everything), trainer)
    _write(folder / "tokenizers" / "olmoe_tokenizer.json.gz", tokenizer.to_str())
    return folder
