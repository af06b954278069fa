"""Files as people have them, ten of them, and a tiny chat model that answers some of their rows right."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cli.projects import word_rows

from roma_ds.testing.chats import OLMOE, give_template
from roma_ds.testing.tiny_models import WORDS, save_tiny

Rows = list[dict[str, Any]]
LETTERS = "ABCDEFGH"


def save_chat_model(folder: Path) -> Path:
    """A random model whose tokenizer has a chat template, with room for the tokens that it writes."""
    save_tiny(folder, vocab_size=220, shard_size="200KB")
    give_template(folder, OLMOE)
    return folder


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def table_text(rows: Rows, sign: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=sign, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def letter_columns(row: dict[str, Any]) -> dict[str, Any]:
    options = dict(zip(LETTERS, row["choices"], strict=False))
    return {"Question": row["question"], **options, "Answer": LETTERS[row["answer"]], "source": "made"}


def labelled(row: dict[str, Any]) -> dict[str, Any]:
    labels = list(LETTERS[: len(row["choices"])])
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["answer"]],
    }


def write_ours(folder: Path, rows: Rows) -> Path:
    (folder / "ours.jsonl").write_bytes(lines(rows))
    return folder / "ours.jsonl"


def write_letters(folder: Path, rows: Rows) -> Path:
    (folder / "letters.csv").write_bytes(table_text([letter_columns(row) for row in rows], ","))
    return folder / "letters.csv"


def write_saved(folder: Path, rows: Rows) -> Path:
    import datasets

    datasets.Dataset.from_list([labelled(row) for row in rows]).save_to_disk(folder / "saved")
    return folder / "saved"


def write_parts(folder: Path, rows: Rows) -> Path:
    (folder / "parts").mkdir(parents=True)
    for place in range(3):
        (folder / "parts" / f"part-{place}.jsonl").write_bytes(lines(rows[place::3]))
    return folder / "parts"


def write_alpaca(folder: Path, pairs: Rows) -> Path:
    rows = [
        {"instruction": pair["asked"], "input": "w3 w4" * (place % 2), "output": pair["said"]}
        for place, pair in enumerate(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "alpaca.parquet")
    return folder / "alpaca.parquet"


def write_messages(folder: Path, pairs: Rows) -> Path:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "w1 w2"},
                {"role": "user", "content": pair["asked"]},
                {"role": "assistant", "content": pair["said"]},
            ]
        }
        for pair in pairs
    ]
    (folder / "messages.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    return folder / "messages.jsonl.gz"


def write_sharegpt(folder: Path, pairs: Rows) -> Path:
    rows = [
        {
            "id": place,
            "conversations": [
                {"from": "human", "value": "w5"},
                {"from": "gpt", "value": "w6"},
                {"from": "human", "value": pair["asked"]},
                {"from": "gpt", "value": pair["said"]},
            ],
        }
        for place, pair in enumerate(pairs)
    ]
    (folder / "sharegpt.json").write_text(json.dumps(rows, indent=1))
    return folder / "sharegpt.json"


def write_pairs(folder: Path, pairs: Rows) -> Path:
    rows = [{"prompt": pair["asked"], "completion": pair["said"]} for pair in pairs]
    (folder / "pairs.tsv").write_bytes(table_text(rows, "\t"))
    return folder / "pairs.tsv"


def write_reading(folder: Path, pairs: Rows) -> Path:
    rows = [
        {
            "id": f"r{place}",
            "title": "w7",
            "context": f"w8 w9 w{place}",
            "question": pair["asked"],
            "answers": {"text": [pair["said"]], "answer_start": [0]},
        }
        for place, pair in enumerate(pairs)
    ]
    (folder / "reading.jsonl.zst").write_bytes(zstd(lines(rows)))
    return folder / "reading.jsonl.zst"


def write_unclear(folder: Path, pairs: Rows) -> Path:
    rows = [{"first": pair["asked"], "second": pair["said"], "third": "w1"} for pair in pairs]
    (folder / "unclear.csv").write_bytes(table_text(rows, ","))
    return folder / "unclear.csv"


WITH_OPTIONS: dict[str, Callable[[Path, Rows], Path]] = {
    "ours": write_ours,
    "letters": write_letters,
    "saved": write_saved,
    "parts": write_parts,
}
WITH_TEXTS: dict[str, Callable[[Path, Rows], Path]] = {
    "alpaca": write_alpaca,
    "messages": write_messages,
    "sharegpt": write_sharegpt,
    "pairs": write_pairs,
    "reading": write_reading,
}
UNCLEAR = "unclear"
NAMES = (*WITH_OPTIONS, *WITH_TEXTS, UNCLEAR)


def asked_pairs(count: int, seed: int) -> Rows:
    """What is asked and a word that is said."""
    rng = random.Random(seed)
    return [
        {"asked": " ".join(f"w{rng.randrange(60)}" for _ in range(rng.randrange(5, 12))), "said": "w9"}
        for _ in range(count)
    ]


def write_file(name: str, folder: Path, model: Path, count: int = 48) -> Path:
    """The file or folder of one of NAMES; of answers that are texts, some are what the model says."""
    folder.mkdir(parents=True, exist_ok=True)
    if name in WITH_OPTIONS:
        return WITH_OPTIONS[name](folder, word_rows(count, 0))
    pairs = asked_pairs(count, 7)
    if name == UNCLEAR:
        return write_unclear(folder, pairs)
    path = WITH_TEXTS[name](folder, pairs)
    said = what_the_model_says(prompts_of(path, model), model)
    known = [place for place, word in enumerate(said) if word in WORDS]
    assert len(known) > count // 4, "the model says too few words"
    for place in known[::2]:
        pairs[place]["said"] = said[place]
    return WITH_TEXTS[name](folder, pairs)


def prompts_of(path: Path, model: Path) -> list[str]:
    """The prompts of the rows of a file, in their order, as a run reads them."""
    from datetime import date

    from roma_ds.config import parse_run_config
    from roma_ds.data import load_training
    from roma_ds.data.chat import ChatTemplate

    text = json.dumps({
        "model": {"path": str(model)},
        "data": {"train": [{"path": str(path)}], "template": "auto"},
        "eval": {"tasks": []},
        "output_dir": "out",
    })  # fmt: skip
    run = parse_run_config(text, path.parent / "run.yaml")
    from transformers import AutoTokenizer

    chat = ChatTemplate.chosen(AutoTokenizer.from_pretrained(model), run.data, date(2024, 1, 31))
    return [sample.prompt for sample in load_training(run, chat)[0]]


def what_the_model_says(prompts: Sequence[str], model: Path) -> list[str]:
    """The most likely next token of each prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(tokenizer.decode(int(network(ids).logits[0, -1].argmax())))
    return found
