"""Solved examples in a study: before the questions of its tasks, before its plain text, and in context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.projects import Finished, make_project, roma_ds_here, word_rows, write_rows

STUDY = """\
run: run.yaml
set: [train.epochs=1, eval.shots=1, "eval.tasks=[{name: words, path: test.jsonl, shots_path: shots.jsonl}]"]
variants: [base, in_context]
seeds: [0]
text: plain.txt
text_words: 20
output_dir: study
"""
CONTEXT = 96
"""Tokens: more than any prompt of the tasks, less than one with three examples more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(
        tmp_path_factory.mktemp("examples"), rows=24, max_position_embeddings=CONTEXT
    ).folder
    write_rows(folder / "shots.jsonl", word_rows(5, 3000))
    (folder / "plain.txt").write_text(" ".join(f"w{place % 60}" for place in range(100)))
    (folder / "study.yaml").write_text(STUDY)
    return folder


def study(folder: Path, *overrides: str) -> Finished:
    more = (f"run={folder / 'run.yaml'}", f"output_dir={folder / 'study'}", f"text={folder / 'plain.txt'}")
    return roma_ds_here(["study", str(folder / "study.yaml"), "--ranks", "1", *more, *overrides])


def entry(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "study" / "report" / "study.json"
    found: dict[str, Any] = json.loads(path.read_text())["entries"][name]
    return found


def test_a_study_with_solved_examples_measures_plain_text(folder: Path) -> None:
    done = study(folder, "variants=[base]")
    assert done.code == 0, done
    assert entry(folder, "base")["perplexity"] > 1
    manifest = json.loads((folder / "study" / "shared" / "data" / "manifest.json").read_text())
    assert "shots" in json.dumps(manifest)


def test_examples_in_context_are_cut_to_the_models_context_and_counted(folder: Path) -> None:
    done = study(folder)
    assert done.code == 0, done
    assert entry(folder, "in_context")["facts"]["truncated"] > 0


def test_examples_in_context_that_do_not_fit_are_refused_where_that_is_asked_for(folder: Path) -> None:
    (folder / "refuse.yaml").write_text(
        (folder / "run.yaml").read_text().replace("max_tokens: 160", "max_tokens: 160, long_prompts: refuse")
    )
    done = study(folder, f"run={folder / 'refuse.yaml'}", f"output_dir={folder / 'refused'}")
    assert done.code == 2 and "Traceback" not in done.err, done
    assert "are allowed" in done.err and "of in_context, roma.neighbours" in done.err, done


def test_more_neighbours_than_successful_samples_are_refused(folder: Path) -> None:
    done = study(folder, "variants=[base, {variant: in_context, set: [roma.neighbours=24]}]")
    assert done.code == 2 and "Traceback" not in done.err, done
    assert "roma.neighbours is 24, but the base model answers" in done.err and "fix: " in done.err, done
