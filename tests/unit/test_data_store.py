"""The data stage on disk: samples as they were, a manifest that accounts for every row, nothing lost."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from data_files import question, run_on, write_rows

from roma_ds.data import data_inputs, load_evaluation, load_samples, load_training, run_data
from roma_ds.data.store import OUTPUTS
from roma_ds.errors import UserError
from roma_ds.storage.atomic import read_json


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        question(0, passage="Once."),
        {"id": 5, "prompt": " as it is ", "answer": "x"},
        question(6, choices=["a", "b"], answer=0),
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    run = run_on(tmp_path)
    run_data(run, tmp_path / "out")
    assert load_samples(tmp_path / "out" / "data" / "samples.parquet") == load_training(run)[0]
    assert load_samples(tmp_path / "out" / "data" / "eval.parquet") == load_evaluation(run)


def test_samples_of_free_text_alone_come_back(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"id": 5, "question": "q?", "answer": "x"}])
    run_data(run_on(tmp_path), tmp_path / "out")
    [sample] = load_samples(tmp_path / "out" / "data" / "samples.parquet")
    assert (sample.options, sample.choices, sample.answer, sample.target) == ((), (), -1, " x")


def test_the_manifest_accounts_for_every_row(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [question(2), question(90)])
    run = run_on(tmp_path, "data.train.0.limit=7", "eval.limit=1", "data.exclude=[boolq]")
    manifest = run_data(run, tmp_path / "out")
    assert manifest == read_json(tmp_path / "out" / "data" / "manifest.json")
    assert manifest["excluded"] == ["boolq"]
    assert manifest["training"]["samples"] == 7
    assert manifest["training"]["datasets"] == [
        {
            "dataset": "train",
            "split": "train",
            "source": str(tmp_path / "train.jsonl"),
            "sha256": hashlib.sha256((tmp_path / "train.jsonl").read_bytes()).hexdigest(),
            "rows": 20,
            "used": 7,
            "over_limit": 12,
            "files": [
                {
                    "file": str(tmp_path / "train.jsonl"),
                    "kind": "JSON lines",
                    "shape": "question (question, answer, choices)",
                    "rows": 20,
                    "example": {"row": question(0), "read": question(0)},
                }
            ],
            "dropped": {
                "exact_question": {
                    "count": 1,
                    "ids": ["train/train/q2"],
                    "examples": [
                        {
                            "sample": "train/train/q2",
                            "evaluation": "mine/test/q2",
                            "words": "which of these is number 2 of the 3 things",
                        }
                    ],
                }
            },
        }
    ]
    evaluated = manifest["evaluation"]["datasets"][0]
    assert (evaluated["dataset"], evaluated["rows"], evaluated["used"], evaluated["over_limit"]) == (
        "mine",
        2,
        1,
        1,
    )
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == sorted(OUTPUTS)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = run_on(tmp_path, "data.train.0.limit=7")
    for name in ("a", "b"):
        run_data(run, tmp_path / name)
    assert all(
        (tmp_path / "a" / "data" / name).read_bytes() == (tmp_path / "b" / "data" / name).read_bytes()
        for name in OUTPUTS
    )


def test_bad_data_leaves_what_is_on_disk(tmp_path: Path) -> None:
    run = run_on(tmp_path)
    run_data(run, tmp_path / "out")
    before = {name: (tmp_path / "out" / "data" / name).read_bytes() for name in OUTPUTS}
    (tmp_path / "test.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match=r"test\.jsonl:1: not valid JSON"):
        run_data(run, tmp_path / "out")
    assert before == {name: (tmp_path / "out" / "data" / name).read_bytes() for name in OUTPUTS}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write to the folder"):
        run_data(run_on(tmp_path), tmp_path / "out")


def test_samples_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_samples(tmp_path / "samples.parquet")


@pytest.mark.parametrize(
    "override",
    [
        "data.train.0.limit=3",
        "data.train.0.answer=text",
        "data.train.0.split=b",
        "data.exclude=[boolq]",
        "data.decontaminate=12",
        "data.decontaminate=off",
        "eval.limit=2",
        "eval.tasks.0.limit=2",
        "eval.tasks.0.name=other",
        "eval.scoring=cloze",
    ],
)
def test_what_the_samples_depend_on_makes_the_stage_stale(tmp_path: Path, override: str) -> None:
    assert data_inputs(run_on(tmp_path, override)) != data_inputs(run_on(tmp_path))


def test_a_folder_from_before_a_key_is_up_to_date_under_its_default(tmp_path: Path) -> None:
    """The inputs that a folder of version 0.1.0 recorded, but for those of its files."""
    assert data_inputs(run_on(tmp_path)).keys() == {"training", "evaluation", "exclude", "columns"}


def test_the_seed_counts_where_it_chooses_rows(tmp_path: Path) -> None:
    """Without a limit on the training rows all seeds of a study share data and caches."""
    assert data_inputs(run_on(tmp_path, "train.seed=1")) == data_inputs(run_on(tmp_path))
    limited, other = (run_on(tmp_path, "data.train.0.limit=3", f"train.seed={seed}") for seed in (0, 1))
    assert data_inputs(limited) != data_inputs(other)


def test_other_settings_and_other_places_do_not(tmp_path: Path) -> None:
    before = data_inputs(run_on(tmp_path))
    assert data_inputs(run_on(tmp_path, "roma.lambda=3", "output_dir=x", "data.max_tokens=9")) == before
    moved = tmp_path / "moved"
    for name in ("train.jsonl", "test.jsonl"):
        write_rows(moved / name, [])
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert data_inputs(run_on(moved)) == before
    write_rows(tmp_path / "train.jsonl", [question(1)])
    assert data_inputs(run_on(tmp_path)) != before
    (tmp_path / "train.jsonl").rename(tmp_path / "gone.jsonl")
    run = run_on(moved, f"data.train.0.path={tmp_path / 'train.jsonl'}")
    with pytest.raises(UserError, match=r"train\.jsonl does not exist"):
        data_inputs(run)


def test_hub_datasets_count_as_unchanged(tmp_path: Path) -> None:
    inputs = data_inputs(run_on(tmp_path, "data.train=[{name: openbookqa}]"))
    assert inputs["training"][0]["hub"] == "hub/allenai/openbookqa/main"
