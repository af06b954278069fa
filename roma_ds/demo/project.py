"""The files that `roma-ds demo` starts from: data, and a config that can be rerun and changed."""

from __future__ import annotations

import json
from pathlib import Path

from roma_ds.config import preset_text
from roma_ds.demo.suite import generate
from roma_ds.storage.atomic import make_folder, write_text

TRAINING_ROWS = 2_000
TEST_ROWS = 2_000
TEST_SEED = 1
"""The test rows are the same for every seed, so that runs can be compared pair by pair."""


def write_project(
    out: Path, seed: int, zero_stage: int, ranks: int, training_rows: int = TRAINING_ROWS
) -> Path:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `run.yaml`; returns the config's path.

    seed chooses the training rows and the order of training. Files that would not change are left alone, so
    that a second demo finds its stages up to date.
    """
    make_folder(out)
    rows = {
        "train": generate("train", training_rows, seed),
        "validation": generate("validation", TEST_ROWS, TEST_SEED),
        "test": generate("test", TEST_ROWS, TEST_SEED),
    }
    for name, content in rows.items():
        _write(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content))
    config = preset_text("demo")
    for old, new in (
        ("seed: 0", f"seed: {seed}"),
        ("micro_batch: 48", f"micro_batch: {max(1, 48 // ranks)}"),
        ("ds_configs/zero3.json", f"ds_configs/zero{zero_stage}.json"),
    ):
        if config.count(old) != 1:
            raise ValueError(f"the demo config must hold '{old}' once")
        config = config.replace(old, new)
    _write(out / "run.yaml", config)
    return out / "run.yaml"


def _write(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        write_text(path, content)
