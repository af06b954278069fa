"""Small data files and runs for the data tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roma_ds.config import RunConfig, parse_run_config


def question(place: int, **changes: Any) -> dict[str, Any]:
    """A row with four choices; the number makes it unlike every other."""
    words = f"which of these is number {place} of the {place + 1} things"
    row = {
        "id": f"q{place}",
        "question": words,
        "choices": ["one", "two", "three", "four"],
        "answer": place % 4,
    }
    return {**row, **changes}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_on(folder: Path, *overrides: str) -> RunConfig:
    """A run on `train.jsonl` and `test.jsonl` in `folder`, which are made if absent."""
    for name, first in (("train.jsonl", 0), ("test.jsonl", 1000)):
        if not (folder / name).exists():
            write_rows(folder / name, [question(first + place) for place in range(20)])
    text = """\
model: {path: owner/model}
data: {train: [{path: train.jsonl}]}
eval: {tasks: [{name: mine, path: test.jsonl}]}
output_dir: out
"""
    return parse_run_config(text, folder / "run.yaml", overrides)
