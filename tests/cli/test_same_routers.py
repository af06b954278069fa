"""Every shape of row and kind of file trains a chat model to the routers that our own JSON lines give it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.own_files import asked_pairs, prompts_of, save_chat_model, what_the_model_says
from cli.projects import roma_ds_here, word_rows
from cli.same_rows import FILES, JUDGED, OPTIONS, READING, TEXTS, Entry
from safetensors.numpy import load_file
from unit.row_files import Rows, save

from roma_ds.storage.atomic import read_parquet
from roma_ds.testing.tiny_models import WORDS

COUNT = 48
SHAPES = {
    **{("questions", name): shape for name, shape in OPTIONS.items()},
    **{("texts", name): shape for name, shape in TEXTS.items()},
    **{("reading", name): shape for name, shape in READING.items()},
    **{("judged", name): shape for name, shape in JUDGED.items()},
}


@dataclass(frozen=True)
class Trained:
    """What a run read, by column, and the routers that it trained."""

    samples: Mapping[str, Any]
    routers: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    model: Path
    rows: Mapping[str, Rows]
    """Of our own."""
    ours: Mapping[str, Trained]
    """What they train, as JSON lines."""

    def same(self, kind: str, folder: Path, entry: Entry) -> None:
        """Asserts that files in `folder`, which `entry` names, train the routers of our own rows."""
        found, ours = trained(self.model, folder, entry), self.ours[kind]
        assert found.samples == ours.samples
        assert found.routers.keys() == ours.routers.keys()
        for name, router in found.routers.items():
            np.testing.assert_array_equal(router, ours.routers[name])


def trained(model: Path, folder: Path, entry: Entry) -> Trained:
    data = {"train": [{"name": "mine/rows", "split": "fit", **entry}], "template": "chat", "max_tokens": 160}
    text = json.dumps({
        "model": {"path": str(model), "dtype": "float32"},
        "data": data if "path" in entry else {**data, "data_root": "root"},
        "embed": {"model": "demo"},
        "roma": {"layers": "last2"},
        "train": {"epochs": 2, "micro_batch": 16, "lr": 1.0e-2},
        "eval": {"tasks": []},
        "controls": [],
        "deepspeed": "zero0",
        "output_dir": "out",
    })  # fmt: skip
    (folder / "run.yaml").write_text(text)
    done = roma_ds_here(["train", str(folder / "run.yaml"), "--ranks", "1"])
    assert done.code == 0, done
    out = folder / "out"
    return Trained(
        read_parquet(out / "data" / "samples.parquet"), load_file(out / "train" / "router.safetensors")
    )


def said(folder: Path, model: Path, rows: Rows) -> Rows:
    """`rows`, half of which have what the model says as their answer."""
    words = what_the_model_says(prompts_of(save(folder, "rows.jsonl", rows), model), model)
    known = [place for place, word in enumerate(words) if word in WORDS]
    assert len(known) > COUNT // 4, "the model says too few words"
    return [{**row, "answer": words[place]} if place in known[::2] else row for place, row in enumerate(rows)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("ours")
    model, pairs = save_chat_model(folder / "model"), asked_pairs(COUNT, 7)
    # Texts that a reader of tables may take for numbers.
    questions = [{**row, "choices": [*row["choices"][:2], "007", "12e3"]} for row in word_rows(COUNT, 0)]
    texts = [{"id": f"t{at}", "prompt": one["asked"], "answer": one["said"]} for at, one in enumerate(pairs)]
    reading = [
        {"id": f"p{at}", "passage": f"w{at} w8", "question": one["asked"], "answer": one["said"]}
        for at, one in enumerate(pairs)
    ]
    rows: dict[str, Rows] = {
        "questions": questions,
        "texts": said(folder / "asked", model, texts),
        "reading": said(folder / "asked", model, reading),
        "judged": [{**row, "choices": ["no", "yes"], "answer": row["answer"] % 2} for row in questions],
    }
    ours = {}
    for kind, own in rows.items():
        save(folder / kind, "rows.jsonl", own)
        ours[kind] = trained(model, folder / kind, {"path": "rows.jsonl"})
        assert len(ours[kind].samples["prompt"]) == COUNT
        assert "<|user|>" in ours[kind].samples["prompt"][0]
    assert not np.array_equal(*(next(iter(ours[kind].routers.values())) for kind in ("questions", "texts")))
    return Setting(model, rows, ours)


@pytest.mark.parametrize("kind, shape", SHAPES)
def test_shapes_of_rows(kind: str, shape: str, setting: Setting, tmp_path: Path) -> None:
    save(tmp_path, "rows.jsonl", [SHAPES[kind, shape](dict(row)) for row in setting.rows[kind]])
    setting.same(kind, tmp_path, {"path": "rows.jsonl"})


@pytest.mark.parametrize("way", FILES)
def test_kinds_of_files(way: str, setting: Setting, tmp_path: Path) -> None:
    setting.same("questions", tmp_path, FILES[way](tmp_path, setting.rows["questions"]))
