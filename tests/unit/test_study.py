"""Studies without a model: what they train, what they refuse, and the numbers of their table."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import letter_samples

from roma_ds.config import study_names, study_text
from roma_ds.config.conversion import keyed_fields
from roma_ds.config.study import SelectConfig, StudyConfig, VariantConfig, load_study_config
from roma_ds.data.sample import Sample
from roma_ds.demo.project import write_study_project
from roma_ds.errors import UserError
from roma_ds.storage.atomic import write_json, write_parquet
from roma_ds.study.nearest import nearest_members
from roma_ds.study.plan import Planner, slug
from roma_ds.study.report import write_study_report
from roma_ds.study.results import read_results
from roma_ds.study.shared import settle_tasks

RUN = """\
model: {path: model}
data: {train: [{path: train.jsonl}]}
eval: {tasks: [{name: validation, path: v.jsonl, split: validation}, {name: test, path: t.jsonl}]}
deepspeed: zero0
output_dir: out
"""
STUDY = """\
run: run.yaml
variants:
  - base
  - router_tuning
  - {variant: roma, grid: ["train.lr=[0.01, 0.02]", "roma.lambda=[1, 3]"]}
  - {variant: roma, label: k, sweep: "roma.neighbours=[1, 3]"}
  - oracle
seeds: [0, 1]
select: {tasks: [validation], seeds: [7]}
report: [test]
output_dir: study
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def load(folder: Path, *overrides: str) -> StudyConfig:
    return load_study_config(folder / "study.yaml", overrides)


def planner(folder: Path, *overrides: str) -> Planner:
    return Planner(load(folder, *overrides), folder / "run.yaml")


def test_cells_are_variants_times_settings_times_seeds(folder: Path) -> None:
    plan = planner(folder)
    selection = plan.selection()
    assert [cell.point for cell in selection] == [
        (f"train.lr={lr}", f"roma.lambda={weight}") for lr in (0.01, 0.02) for weight in (1, 3)
    ]
    assert {(cell.seed, cell.run.train.seed) for cell in selection} == {(7, 7)}
    assert [cell.run.train.lr for cell in selection] == [0.01, 0.01, 0.02, 0.02]
    chosen = {"roma": ("train.lr=0.02", "roma.lambda=1")}
    cells = plan.reported(chosen)
    names = [cell.entry.name for cell in cells]
    assert names.count("roma") == 2 and names.count("k neighbours=1") == 2
    assert names.count("base") == names.count("oracle") == 1, "what no seed changes is run once"
    assert {cell.run.train.lr for cell in cells if cell.entry.name == "roma"} == {0.02}
    assert [cell.run.roma.neighbours for cell in cells if cell.entry.curve] == [1, 3, 1, 3]
    tuned = next(cell for cell in cells if cell.entry.name == "router_tuning")
    assert tuned.run.roma.lambda_ == 0.0
    folders = [cell.folder for cell in (*selection, *cells)]
    assert len(set(folders)) == len(folders)
    assert all(folder / "study" in path.parents for path in folders)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("variants=[base, rmoa]", "no variant 'rmoa'; did you mean 'roma'"),
        ("variants=[{variant: roma, set: [output_dir=x]}]", "output_dir is the same for all variants"),
        ("variants=[{variant: roma, set: [train.seed=3]}]", "train.seed is the same for all variants"),
        ("variants=[{variant: roma, set: [collect.seed=3]}]", "collect.seed is the same for all variants"),
        ("variants=[{variant: roma, grid: [train.lr=0.1]}]", "names no list of values"),
        ("variants=[{variant: roma, set: [train.lrr=0.1]}]", "unknown key"),
        ("variants=[{variant: roma, set: [train.lr]}]", "has not the form"),
        ("variants=[roma, roma]", "roma more than once"),
        ("report=[validation]", "settings must not be chosen on it"),
        ("select={}", "needs select.tasks and select.seeds"),
        ("sedes=[1]", "did you mean 'seeds'"),
        ("seeds=[]", "seeds: must not be empty"),
        ("text_words=2", "text_words: must be at least 3"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(folder: Path, override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        planner(folder, override).everything()
    assert says in str(caught.value) and "fix: " in str(caught.value)


def task_samples(task: str, split: str, seed: int) -> list[Sample]:
    from dataclasses import replace

    return [replace(sample, task=task, split=split) for sample in letter_samples(5, seed)]


def test_selection_on_a_test_split_or_on_its_questions_is_refused(folder: Path) -> None:
    test, validation = task_samples("test", "test", 1), task_samples("validation", "validation", 2)
    tasks = settle_tasks(load(folder), [*validation, *test])
    assert (tasks.report, tasks.select) == (("test",), ("validation",))
    assert tasks.rows(["test"]) == [5, 6, 7, 8, 9]
    mislabelled = task_samples("validation", "test", 2)
    with pytest.raises(UserError, match="whose split is 'test': settings must not be chosen on a test"):
        settle_tasks(load(folder), [*mislabelled, *test])
    with pytest.raises(UserError, match="1 questions of validation are in a reported task"):
        leaked = [*validation[:4], *task_samples("validation", "validation", 1)[:1]]
        settle_tasks(load(folder), [*leaked, *test])
    with pytest.raises(UserError, match="the run evaluates no task arc"):
        settle_tasks(load(folder, "report=[arc]"), [*validation, *test])


def test_packaged_studies_are_sound(tmp_path: Path) -> None:
    assert "study_demo" in study_names() and len(study_names()) == 9
    write_study_project(tmp_path / "project")
    for name in study_names():
        path = tmp_path / f"{name}.yaml"
        path.write_text(study_text(name))
        study = load_study_config(path, [f"output_dir={tmp_path}"])
        cells = Planner(study, tmp_path / "project" / "run.yaml").reported({})
        variants = {cell.entry.method.name for cell in cells}
        assert {"base", "router_tuning"} <= variants, name
        assert len(study.seeds) == 5
        if name == "study_demo":
            from roma_ds.baselines.methods import METHODS

            assert variants == set(METHODS)
        else:
            assert sum(cell.entry.curve is not None for cell in cells) >= 15


def test_every_key_of_a_study_is_read() -> None:
    package = Path(__file__).resolve().parents[2] / "roma_ds"
    read = {
        node.attr
        for path in [*(package / "study").glob("*.py"), package / "cli" / "commands.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    for section in (StudyConfig, VariantConfig, SelectConfig):
        for key in keyed_fields(section):
            assert key in read or (section is VariantConfig and key == "label"), key


def test_folder_names_are_safe_and_distinct() -> None:
    assert slug("train.lr=0.01") == "train.lr=0.01"
    names = {slug(text) for text in ("a b", "a-b", "a/b", "roma layers=[1, 2]", "x" * 80, "x" * 81)}
    assert len(names) == 6 and not any("/" in name or " " in name for name in names)


def test_nearest_members_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(50, 8))
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    members = np.flatnonzero(rng.random(50) < 0.5)
    ids, products = nearest_members(known[:7], known, members, 3)
    for row in range(7):
        expected = sorted(members, key=lambda one: -float(known[row] @ known[one]))[:3]
        assert ids[row].tolist() == expected
    assert (np.diff(products, axis=1) <= 0).all()


def test_fewer_successful_samples_than_neighbours_is_the_users_mistake() -> None:
    known = np.eye(4)
    with pytest.raises(UserError, match=r"is 3, but the base model answers 2 .*\n  fix: .*at most 2"):
        nearest_members(known, known, np.array([0, 2]), 3)
    with pytest.raises(UserError, match=r"answers 0 .*\n  fix: take more training samples"):
        nearest_members(known, known, np.array([], np.int64), 3)


def fake_study(root: Path, accuracies: dict[str, list[float]], questions: int = 400) -> None:
    """The files that cells leave, with answers right at random; the same question is as hard for all."""
    rng = np.random.default_rng(1)
    difficulty = rng.random(questions)
    cells: list[dict[str, Any]] = []
    for name, rates in accuracies.items():
        for seed, rate in enumerate(rates):
            folder = root / "report" / slug(name) / f"seed-{seed}"
            right = (
                difficulty < rate if name == "base" else (difficulty + rng.normal(0, 0.05, questions)) < rate
            )
            write_parquet(
                folder / "outcome.parquet",
                {
                    "task": ["test"] * questions + ["validation"],
                    "id": [str(number) for number in range(questions)] + ["v"],
                    "correct": [*right.tolist(), True],
                },
            )
            extra = {"seconds": 2.0, "train_seconds": 1.0, "trainable_parameters": 10, "inference": 1.0}
            aligned = dict.fromkeys(("knn_overlap", "trustworthiness", "cka", "mean_sq_distance"), 0.5)
            side = {"expert_load_entropy": 0.9, "expert_overlap_with_base": 0.8}
            write_json(
                folder / "cell.stage.json",
                {"extra": {**extra, "alignment": {"test": aligned}, "side_effects": side, "perplexity": 3.0}},
            )
            curve = {"title": "roma: k", "key": "k", "value": 1} if name.startswith("k") else None
            cells.append(
                {
                    "entry": name,
                    "variant": name if name in ("base", "router_tuning") else "roma",
                    "description": "",
                    "kind": "base" if name == "base" else "routers",
                    "uses_test_labels": False,
                    "seeded": name != "base",
                    "overrides": [],
                    "point": [],
                    "seed": seed,
                    "curve": curve,
                    "folder": str(folder.relative_to(root)),
                }
            )
    facts = {"tasks": {"report": ["test"], "select": ["validation"]}, "seeds": [0, 1, 2, 3, 4]}
    write_json(
        root / "cells.json",
        {**facts, "world_size": 1, "packages": {}, "shared_seconds": 5.0, "cells": cells, "selection": []},
    )


def test_the_table_says_what_the_cells_hold(tmp_path: Path) -> None:
    better = [0.76, 0.78, 0.77, 0.79, 0.77]
    fake_study(
        tmp_path,
        {"base": [0.6], "router_tuning": [0.70, 0.71, 0.70, 0.72, 0.71], "roma": better, "k 1": better},
    )
    results = read_results(tmp_path)
    rows = results["entries"]
    assert results["questions"] == 400
    assert rows["roma"]["accuracy"] == pytest.approx(np.mean(rows["roma"]["by_seed"]))
    assert len(rows["base"]["by_seed"]) == 1 and rows["base"]["stderr_over_seeds"] is None
    compared = rows["roma"]["compared"]
    assert compared["base"]["difference"] == pytest.approx(
        rows["roma"]["accuracy"] - rows["base"]["accuracy"]
    )
    assert compared["base"]["decided"] and compared["router_tuning"]["decided"]
    assert compared["base"]["p_holm"] >= compared["base"]["p_value"]
    assert compared["base"]["comparisons"] == 5
    assert rows["base"]["compared"] == {}
    text = write_study_report(tmp_path)
    assert f"| roma | {100 * rows['roma']['accuracy']:.2f} |" in text
    for name in ("study.json", "study.html", "table.md", "accuracy.png"):
        assert (tmp_path / "report" / name).stat().st_size > 100
    assert list((tmp_path / "report").glob("curve-*.png"))


def test_two_copies_of_a_variant_are_not_told_apart(tmp_path: Path) -> None:
    same = [0.70, 0.72, 0.71, 0.69, 0.73]
    fake_study(tmp_path, {"base": [0.6], "router_tuning": same, "roma": same[::-1]})
    assert not read_results(tmp_path)["entries"]["roma"]["compared"]["router_tuning"]["decided"]
