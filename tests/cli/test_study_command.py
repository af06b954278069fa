"""`roma-ds study` as a user types it, on a tiny model: every kind of variant, resuming, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Finished, make_project, roma_ds, word_rows, write_rows

from roma_ds.storage.atomic import read_parquet

STUDY = """\
run: run.yaml
set: [train.samples=40, train.epochs=1, "eval.tasks=[{name: validation, path: validation.jsonl, split: \
validation}, {name: words, path: test.jsonl}]"]
variants:
  - base
  - router_tuning
  - {variant: roma, grid: ["train.lr=[0.01, 0.02]"]}
  - wrong_only
  - oracle_tuning
  - lora
  - c3po_regression
  - in_context
  - oracle
seeds: [0, 1]
select: {tasks: [validation], seeds: [9]}
text: plain.txt
text_words: 20
output_dir: study
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("study"))
    write_rows(project.folder / "validation.jsonl", word_rows(20, 2000))
    (project.folder / "plain.txt").write_text(" ".join(f"w{place % 60}" for place in range(200)))
    (project.folder / "study.yaml").write_text(STUDY)
    return project.folder


@pytest.fixture(scope="module")
def done(folder: Path) -> Finished:
    return roma_ds("study", "study.yaml", "--ranks", "1", cwd=folder, timeout_s=280)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "study" / "report" / "study.json").read_text())
    return found


def test_one_command_gives_the_table(done: Finished, folder: Path) -> None:
    assert done.code == 0, done
    rows = results(folder)["entries"]
    assert list(rows) == [
        "base", "router_tuning", "roma", "wrong_only", "oracle_tuning", "lora", "c3po_regression",
        "in_context", "oracle",
    ]  # fmt: skip
    assert all(len(row["by_seed"]) == (2 if row["seeded"] else 1) for row in rows.values())
    for name, row in rows.items():
        assert f"| {name}" in done.out
        assert set(row["tasks"]) == {"words"}, "what is selected on is not reported"
    assert rows["oracle"]["accuracy"] >= rows["base"]["accuracy"]
    assert "oracle (uses test labels)" in done.out
    procedure = rows["oracle"]["facts"]["procedure"]
    assert (procedure["lr"], procedure["steps"]) == (0.1, 25) and procedure["stopping"]
    # Both routers of the tiny model, 8 experts by 32.
    assert rows["roma"]["cost"]["trainable_parameters"] == 512
    assert rows["lora"]["facts"]["matched_to_routers"] == pytest.approx(1.0, abs=0.3)
    assert rows["in_context"]["cost"]["inference"] > 2
    assert rows["c3po_regression"]["cost"]["inference"] > 2
    chosen = results(folder)["selection"]["roma"]
    assert [trial["chosen"] for trial in chosen].count(True) == 1
    assert rows["roma"]["chosen"] == next(trial["point"] for trial in chosen if trial["chosen"])


def test_curves_of_a_cell_lie_beside_its_files(done: Finished, folder: Path) -> None:
    boards = {path.relative_to(folder / "study") for path in (folder / "study").rglob("tensorboard")}
    for name in ("roma", "router_tuning"):
        mine = [path for path in boards if path.parts[:2] == ("report", name)]
        assert len(mine) == 2, "one for each seed"
    assert not [path for path in boards if path.parts[0] == "shared"]


def test_alignment_and_side_effects_are_in_the_result(done: Finished, folder: Path) -> None:
    rows = results(folder)["entries"]
    for name in ("base", "router_tuning", "roma", "lora", "c3po_regression"):
        # Methods of the test time answer what is reported alone.
        more = set() if name == "c3po_regression" else {"validation"}
        assert set(rows[name]["alignment"]) == {"words", *more}, name
        assert set(rows[name]["alignment"]["words"]) == {
            "knn_overlap", "cka", "trustworthiness", "mean_sq_distance",
        }  # fmt: skip
    assert rows["base"]["side_effects"]["expert_overlap_with_base"] == 1.0
    assert 0 < rows["roma"]["side_effects"]["expert_overlap_with_base"] <= 1.0
    assert rows["base"]["perplexity"] > 1 and rows["lora"]["perplexity"] > 1
    assert rows["in_context"]["perplexity"] is None


def test_two_ranks_give_the_same_numbers(done: Finished, folder: Path) -> None:
    """Routers are trained by both ranks together, the others by one rank each, in global batches of 8."""
    text = STUDY.replace("train.epochs=1", "train.epochs=1, train.micro_batch=4")
    (folder / "study2.yaml").write_text(text.replace("output_dir: study", "output_dir: study2"))
    names = ("base", "router_tuning", "oracle_tuning", "lora", "oracle")
    more = (f"variants=[{', '.join(names)}]", "seeds=[0]")
    both = roma_ds("study", "study2.yaml", "--ranks", "2", *more, cwd=folder, timeout_s=280)
    assert both.code == 0, both
    for name in names:
        one, two = (
            read_parquet(folder / root / "report" / name / "seed-0" / "outcome.parquet")
            for root in ("study", "study2")
        )
        assert one["id"] == two["id"] and one["predicted"] == two["predicted"], name
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-3), name
    targets = "report/oracle_tuning/seed-0/controls/oracle_tuning/oracle.routing.npy"
    mine, shared = (np.load(folder / root / targets) for root in ("study", "study2"))
    assert np.abs(mine.astype(float) - shared.astype(float)).max() < 2e-3 and mine.std() > 0


def test_finished_cells_are_skipped(done: Finished, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "study").rglob("cell.stage.json")}
    assert len(before) == 2 + 2 * 7 + 2
    table = (folder / "study" / "report" / "table.md").read_text()
    again = roma_ds("study", "study.yaml", "--ranks", "1", cwd=folder, timeout_s=200)
    assert again.code == 0, again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "study" / "report" / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("select={tasks: [words], seeds: [1]}", "report=[validation]"),
            "must not be chosen on a test split",
        ),
        (("variants=[base, rmoa]",), "did you mean 'roma'"),
        (("run=nowhere.yaml",), "nowhere.yaml does not exist"),
    ],
)
def test_mistakes_end_with_exit_2(
    done: Finished, folder: Path, overrides: tuple[str, ...], says: str
) -> None:
    found = roma_ds("study", "study.yaml", "--ranks", "1", *overrides, cwd=folder, timeout_s=120)
    assert found.code == 2, found
    assert says in found.err and "fix: " in found.err and "Traceback" not in found.err
