"""The files that `roma-ds demo` starts from: data, and a config that can be rerun and changed."""

from __future__ import annotations

import json
from pathlib import Path

from roma_ds.config import preset_text
from roma_ds.demo.suite import generate
from roma_ds.storage.atomic import make_folder, write_text

TRAINING_ROWS = 2_000
TEST_ROWS = 2_000
STUDY_ROWS = 4_000
STUDY_TRAINING_ROWS = 1_000
STUDY_TEST_ROWS = 600
STUDY_VALIDATION_ROWS = 300
PLAIN_ROWS = 120
TEST_SEED = 1
"""The test rows are the same for every seed, so that runs can be compared pair by pair."""


def write_project(out: Path, seed: int, zero_stage: int, training_rows: int = TRAINING_ROWS) -> Path:
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
        ("ds_configs/zero3.json", f"ds_configs/zero{zero_stage}.json"),
    ):
        if config.count(old) != 1:
            raise ValueError(f"the demo config must hold '{old}' once")
        config = config.replace(old, new)
    _write(out / "run.yaml", config)
    return out / "run.yaml"


def write_study_project(out: Path) -> Path:
    """The files of a study on the demo suite; returns the path of the run config that its variants share.

    Each seed of the study trains on STUDY_TRAINING_ROWS of the STUDY_ROWS training questions, so that all
    seeds share one collection. `plain.txt` is text in known phrasings that nothing is trained or tested on.
    """
    make_folder(out)
    rows = {
        "train": generate("train", STUDY_ROWS, 0),
        "validation": generate("validation", STUDY_VALIDATION_ROWS, TEST_SEED),
        "test": generate("test", STUDY_TEST_ROWS, TEST_SEED),
    }
    for name, content in rows.items():
        _write(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in content))
    plain = generate("known", PLAIN_ROWS, TEST_SEED)
    answered = (f"{row['prompt']} {row['choices'][row['answer']]}\n" for row in plain)
    _write(out / "plain.txt", "".join(answered))
    config = preset_text("demo")
    for old, new in (
        (
            "    - {name: demo, path: test.jsonl}   # phrasings that training never sees\n",
            "    - {name: validation, path: validation.jsonl, split: validation}\n"
            "    - {name: test, path: test.jsonl}\n",
        ),
        ("  seed: 0\n", f"  seed: 0\n  samples: {STUDY_TRAINING_ROWS}\n"),
        ("save_every: 50\n", "save_every: 100000\n"),
        ("log_every: 10\n", "log_every: 1000\n"),
        ("ds_configs/zero3.json", "ds_configs/zero0.json"),
    ):
        if config.count(old) != 1:
            raise ValueError(f"the demo config must hold '{old}' once")
        config = config.replace(old, new)
    _write(out / "run.yaml", config)
    return out / "run.yaml"


def _write(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        write_text(path, content)
