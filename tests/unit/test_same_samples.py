"""The same rows in every shape and kind of file become the same samples as from JSON lines of our own."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roma_ds.config import parse_run_config
from roma_ds.data import load_training
from roma_ds.data.chat import ChatTemplate
from roma_ds.testing.chats import OLMOE, give_template
from roma_ds.testing.tiny_models import save_tiny

Rows = list[dict[str, Any]]
TURNS = [(f"w{place} w{place + 1} is?", f"w{place + 7}") for place in range(12)]
QUESTIONS: Rows = [
    {"question": f"w{place} or w{place + 1}?", "choices": [f"w{place}", "007", "12e3"], "answer": place % 3}
    for place in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("same") / "model", vocab_size=220)
    give_template(folder, OLMOE)
    return folder


def samples(model: Path, *paths: str | Path) -> list[tuple[Any, ...]]:
    """What is asked and answered, without the ids, which files may lack."""
    text = json.dumps({
        "model": {"path": str(model)},
        "data": {"train": [{"name": "rows", "path": [str(path) for path in paths]}], "template": "chat"},
        "eval": {"tasks": []},
        "output_dir": "out",
    })  # fmt: skip
    run = parse_run_config(text, model / "run.yaml")
    from transformers import AutoTokenizer

    chat = ChatTemplate.chosen(AutoTokenizer.from_pretrained(model), run.data, date(2024, 1, 31))
    found = [(one.prompt, one.options, one.answer, one.target) for one in load_training(run, chat)[0]]
    assert len(found) == 12
    return found


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


SHAPES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "messages": lambda asked, said: {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    },
    "content in parts": lambda asked, said: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": asked}]},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        ]
    },
    "conversations": lambda asked, said: {
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
    },
    "instruction": lambda asked, said: {"instruction": asked, "input": "", "output": said},
    "prompt and completion": lambda asked, said: {"prompt": asked, "completion": said},
    "prompt and completion as messages": lambda asked, said: {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": said}],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_texts(shape: str, model: Path, tmp_path: Path) -> None:
    ours = written(tmp_path / "ours.jsonl", lines([{"prompt": one, "answer": two} for one, two in TURNS]))
    other = written(tmp_path / "other.jsonl", lines([SHAPES[shape](*turn) for turn in TURNS]))
    assert samples(model, other) == samples(model, ours)


def option_shapes(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    question, choices, answer = row["question"], row["choices"], row["answer"]
    labels = ["A", "B", "C"]
    return {
        "letter": {**row, "answer": labels[answer]},
        "text": {**row, "answer": choices[answer]},
        "labelled": {
            "question": question,
            "choices": {"text": choices, "label": labels},
            "answerKey": labels[answer],
        },
        "columns": {
            "question": question,
            **dict(zip(labels, choices, strict=True)),
            "answer": labels[answer],
        },
        "JSON text": {**row, "choices": json.dumps(choices)},
    }


@pytest.mark.parametrize("shape", ["letter", "text", "labelled", "columns", "JSON text"])
def test_shapes_of_options(shape: str, model: Path, tmp_path: Path) -> None:
    ours = written(tmp_path / "ours.jsonl", lines(QUESTIONS))
    other = written(tmp_path / "other.jsonl", lines([option_shapes(row)[shape] for row in QUESTIONS]))
    assert samples(model, other) == samples(model, ours)


def table_text(sign: str) -> bytes:
    rows = [option_shapes(row)["columns"] for row in QUESTIONS]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=sign)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(QUESTIONS), folder / "rows.parquet")
    return folder / "rows.parquet"


def saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(QUESTIONS).save_to_disk(folder / "saved")
    return folder / "saved"


def parts(folder: Path) -> Path:
    for place in range(3):
        written(folder / "parts" / f"{place}.jsonl", lines(QUESTIONS[place * 4 :][:4]))
    return folder / "parts"


KINDS: dict[str, Callable[[Path], Path | str]] = {
    "JSON array": lambda folder: written(folder / "rows.json", json.dumps(QUESTIONS, indent=1).encode()),
    "gz": lambda folder: written(folder / "rows.jsonl.gz", gzip.compress(lines(QUESTIONS))),
    "bz2": lambda folder: written(folder / "rows.jsonl.bz2", bz2.compress(lines(QUESTIONS))),
    "xz": lambda folder: written(folder / "rows.jsonl.xz", lzma.compress(lines(QUESTIONS))),
    "zst": lambda folder: written(folder / "rows.jsonl.zst", zstd(lines(QUESTIONS))),
    "CSV": lambda folder: written(folder / "rows.csv", table_text(",")),
    "TSV": lambda folder: written(folder / "rows.tsv", table_text("\t")),
    "Parquet": parquet,
    "Arrow folder": saved,
    "folder": parts,
    "pattern": lambda folder: f"{parts(folder)}/*.jsonl",
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind: str, model: Path, tmp_path: Path) -> None:
    ours = written(tmp_path / "ours" / "rows.jsonl", lines(QUESTIONS))
    other = KINDS[kind](tmp_path)
    assert samples(model, other) == samples(model, ours)


def test_several_files_under_one_name(model: Path, tmp_path: Path) -> None:
    ours = written(tmp_path / "ours" / "rows.jsonl", lines(QUESTIONS))
    files = sorted(parts(tmp_path).iterdir())
    assert samples(model, *files) == samples(model, ours)
