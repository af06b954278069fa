"""A study whose answers are generated: every kind of variant writes with what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.projects import roma_ds, write_rows

from roma_ds.demo.project import write_study_project
from roma_ds.demo.suite import generate
from roma_ds.storage.atomic import read_parquet

NAMES = (
    "base", "router_tuning", "roma", "lora", "prompt_tuning", "prefix_tuning", "dense_bp",
    "c3po_regression", "in_context", "oracle",
)  # fmt: skip
STUDY = """\
run: project/run.yaml
set: [train.samples=null, train.epochs=1, train.micro_batch=24, eval.max_new_tokens=2, eval.batch_size=16, \
"eval.tasks=[{{name: validation, path: validation.jsonl, split: validation}}, \
{{name: test, path: test.jsonl}}, {{name: written, path: written.jsonl, scoring: generate}}]"]
variants: [{names}]
seeds: [0]
select: {{tasks: [validation]}}
report: [test, written]
output_dir: study
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("writing")
    write_study_project(made / "project")
    for name, split, rows in (("test", "test", 40), ("validation", "validation", 8), ("train", "train", 96)):
        write_rows(made / "project" / f"{name}.jsonl", generate(split, rows, 3))
    # The same questions in another order behind scored ones, and not all of them.
    write_rows(made / "project" / "written.jsonl", generate("test", 40, 3)[:3:-1])
    (made / "study.yaml").write_text(STUDY.format(names=", ".join(NAMES)))
    done = roma_ds("study", "study.yaml", "--ranks", "2", cwd=made, timeout_s=400)
    assert done.code == 0, done
    return made


def outcome(folder: Path, name: str) -> dict[str, dict[str, list[Any]]]:
    """By task, the columns of a cell."""
    columns = read_parquet(folder / "study" / "report" / name / "seed-0" / "outcome.parquet")
    return {
        task: {key: [one for one, own in zip(values, columns["task"], strict=True) if own == task]
               for key, values in columns.items()}
        for task in ("test", "written")
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_is_most_likely(folder: Path, name: str) -> None:
    """Where the packaged model writes an option, and not another word, it is the one that scores best."""
    found = outcome(folder, name)
    scored, written = found["test"], found["written"]
    # test/test/test-3-17 and written/test/test-3-17 are one question.
    places = [scored["id"].index(one.replace("written", "test", 1)) for one in written["id"]]
    assert len(places) == 36 and places[0] == 39
    said = [turn for turn, number in enumerate(written["predicted"]) if number >= 0]
    assert len(said) >= 15
    assert [written["predicted"][turn] for turn in said] == [
        scored["predicted"][places[turn]] for turn in said
    ]
    assert all(written["generated"]) and not any(scored["generated"])
    assert all(
        right == (predicted == answer)
        for right, predicted, answer in zip(
            written["correct"], written["predicted"], written["answer"], strict=True
        )
    )


def test_variants_write_different_things(folder: Path) -> None:
    rows = json.loads((folder / "study" / "report" / "study.json").read_text())["entries"]
    assert set(rows) == set(NAMES)
    # Two tokens end no answer but by chance.
    assert all(0 < row["facts"]["unfinished"]["written"] <= 36 for row in rows.values())
    assert rows["oracle"]["tasks"]["written"] > rows["base"]["tasks"]["written"] + 0.2
    answers = {name: tuple(outcome(folder, name)["written"]["predicted"]) for name in NAMES}
    assert len(set(answers.values())) >= 6


def test_the_base_cell_writes_what_the_shared_stage_wrote(folder: Path) -> None:
    shared = read_parquet(folder / "study" / "shared" / "eval" / "base.samples.parquet")
    places = [place for place, task in enumerate(shared["task"]) if task == "written"]
    cell = outcome(folder, "base")["written"]
    assert [shared["predicted"][place] for place in places] == cell["predicted"]
    assert all(shared["generated"][place] for place in places)


def test_another_limit_of_new_tokens_makes_cells_stale(folder: Path) -> None:
    cell = folder / "study" / "report" / "base" / "seed-0" / "cell.stage.json"
    before = cell.stat().st_mtime_ns
    changed = ("variants=[base, router_tuning]", "--ranks", "1")
    text = (folder / "study.yaml").read_text().replace("max_new_tokens=2", "max_new_tokens=3")
    (folder / "longer.yaml").write_text(text)
    done = roma_ds("study", "longer.yaml", *changed, cwd=folder, timeout_s=280)
    assert done.code == 0 and "changed since: generate" in done.out, done
    assert cell.stat().st_mtime_ns > before
    assert "answers were cut off at 3 tokens (eval.max_new_tokens)" in done.out
