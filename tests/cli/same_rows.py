"""The same questions in every shape of row, and the same rows in every kind of file and way to name them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unit.row_files import KINDS, Rows, save

Row = dict[str, Any]
Entry = dict[str, Any]
"""Of `data.train`."""
LETTERS = "ABCD"


def turns(said: str, asked: str) -> list[Row]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


OPTIONS: Mapping[str, Callable[[Row], Row]] = {
    "letter": lambda row: {**row, "answer": LETTERS[row["answer"]]},
    "digit": lambda row: {**row, "answer": str(row["answer"])},
    "text": lambda row: {**row, "answer": row["choices"][row["answer"]]},
    "whole number as a float": lambda row: {**row, "answer": float(row["answer"])},
    "labelled": lambda row: {
        "id": row["id"],
        "question": row["question"],
        "choices": {"text": row["choices"], "label": list(LETTERS)},
        "answerKey": LETTERS[row["answer"]],
    },
    "labelled one by one": lambda row: {
        **row,
        "choices": [
            {"text": text, "label": label} for text, label in zip(row["choices"], LETTERS, strict=True)
        ],
        "answer": LETTERS[row["answer"]],
    },
    "columns": lambda row: {
        "id": row["id"],
        "Question": row["question"],
        **dict(zip(LETTERS, row["choices"], strict=True)),
        "Answer": LETTERS[row["answer"]],
    },
    "JSON text": lambda row: {**row, "choices": json.dumps(row["choices"])},
    "Python text": lambda row: {**row, "choices": str(row["choices"])},
}
"""Of a row `{id, question, choices, answer: index}`."""

TEXTS: Mapping[str, Callable[[Row], Row]] = {
    "prompt and completion": lambda row: {
        "id": row["id"], "prompt": row["prompt"], "completion": row["answer"],
    },
    "prompt and completion as messages": lambda row: {
        "id": row["id"],
        "prompt": turns("", row["prompt"])[:1],
        "completion": turns(row["answer"], "")[1:],
    },
    "instruction": lambda row: {"id": row["id"], "instruction": row["prompt"], "output": row["answer"]},
    "instruction and no input": lambda row: {
        "id": row["id"], "instruction": row["prompt"], "input": "", "output": row["answer"],
    },
    "messages": lambda row: {"id": row["id"], "messages": turns(row["answer"], row["prompt"])},
    "messages in parts": lambda row: {
        "id": row["id"],
        "messages": [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]}
            for turn in turns(row["answer"], row["prompt"])
        ],
    },
    "messages with a weight": lambda row: {
        "id": row["id"],
        "messages": [
            *turns("", row["prompt"])[:1], {**turns(row["answer"], "")[1], "weight": 1},
        ],
    },
    "messages and no tools": lambda row: {
        "id": row["id"], "messages": turns(row["answer"], row["prompt"]), "tools": [],
    },
    "conversations": lambda row: {
        "id": row["id"],
        "conversations": [
            {"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["answer"]},
        ],
    },
}  # fmt: skip
"""Of a row `{id, prompt, answer: text}`."""

READING: Mapping[str, Callable[[Row], Row]] = {
    "context": lambda row: {
        "id": row["id"], "context": row["passage"], "question": row["question"], "answer": row["answer"],
    },
    "context and answers": lambda row: {
        "id": row["id"],
        "title": "w1",
        "context": row["passage"],
        "question": row["question"],
        "answers": {"text": [row["answer"], "w2"], "answer_start": [0, 0]},
    },
}  # fmt: skip
"""Of a row `{id, passage, question, answer: text}`."""

JUDGED: Mapping[str, Callable[[Row], Row]] = {
    "truth value": lambda row: {
        "id": row["id"], "question": row["question"], "answer": bool(row["answer"]),
    },
}  # fmt: skip
"""Of a row whose options are "no" and "yes"."""


def parts(folder: Path, rows: Rows) -> None:
    for place in range(3):
        save(folder / "parts", "rows.jsonl", rows[place * 16 : place * 16 + 16])
        (folder / "parts" / "rows.jsonl").rename(folder / "parts" / f"part-{place}.jsonl")


def folder_of_parts(folder: Path, rows: Rows) -> Entry:
    parts(folder, rows)
    return {"path": "parts"}


def pattern(folder: Path, rows: Rows) -> Entry:
    parts(folder / "2024" / "a", rows)
    return {"path": "2024/**/part-?.jsonl"}


def several(folder: Path, rows: Rows) -> Entry:
    """Two files of different kinds under one name."""
    save(folder, "rows.csv.gz", rows[:20])
    save(folder, "rows.parquet", rows[20:])
    return {"path": ["rows.csv.gz", "rows.parquet"]}


def arrow_folder(folder: Path, rows: Rows) -> Entry:
    import datasets

    datasets.Dataset.from_list([dict(row) for row in rows]).save_to_disk(folder / "saved")
    return {"path": "saved"}


def folder_of_splits(folder: Path, rows: Rows) -> Entry:
    import datasets

    split = datasets.Dataset.from_list([dict(row) for row in rows])
    datasets.DatasetDict({"fit": split, "other": split.select([0])}).save_to_disk(folder / "splits")
    return {"path": "splits", "split": "fit"}


def named_columns(folder: Path, rows: Rows) -> Entry:
    """Under keys that no shape has."""
    names = {"question": "Frage", "choices": "Wahl", "answer": "Antwort"}
    save(folder, "rows.jsonl", [{names.get(key, key): value for key, value in row.items()} for row in rows])
    return {"path": "rows.jsonl", "columns": names}


def from_a_root(folder: Path, rows: Rows) -> Entry:
    """As a data set of the hub, which lies under `data.data_root`."""
    path = save(folder / "root" / "mine" / "rows", "rows.parquet", rows)
    path.rename(path.with_stem("fit"))
    return {}


WAYS: Mapping[str, Callable[[Path, Rows], Entry]] = {
    "folder of parts": folder_of_parts,
    "pattern": pattern,
    "several": several,
    "Arrow folder": arrow_folder,
    "folder of splits": folder_of_splits,
    "columns": named_columns,
    "data root": from_a_root,
}


def of_kind(name: str) -> Callable[[Path, Rows], Entry]:
    """The way that saves rows as KINDS has them under that file name."""

    def way(folder: Path, rows: Rows) -> Entry:
        save(folder, name, rows)
        return {"path": name}

    return way


FILES = {**{name: of_kind(name) for name in KINDS if name != "rows.jsonl"}, **WAYS}
