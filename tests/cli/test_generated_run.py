"""A run whose S takes generated answers: outcomes, what is said of them, and what is refused early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.projects import Finished, Project, contents, make_project, roma_ds_here, write_rows
from cli.test_bad_input import refusal

from roma_ds.data.store import load_samples
from roma_ds.storage.atomic import read_json, read_parquet

JUDGING = '''\
def right(text, sample):
    """Half of all texts, whatever they say; those that speak of w5 give no answer."""
    words = text.split()
    return None if "w5" in words else sum(map(len, words)) % 2 == 0


def fails(text, sample):
    if sample["id"].endswith("/s5"):
        raise KeyError("no such thing")
    return True
'''
SOLVED = [
    {"id": f"s{n}", "question": f"w{n} w{n + 1} w{2 * n}", "solution": f"w{n} w9 w{n + 3}", "answer": "w1 w2"}
    for n in range(24)
]
SUMS = [
    {"id": n, "question": f"w{n} w4 w{n + 1}", "solution": f"w{n} w{n + 1} w7\n#### {n}", "answer": str(n)}
    for n in range(12)
]
DRAWN = (
    "data.train=[{path: solved.jsonl, answer: solution, judge: 'judging:right'}]",
    "collect.samples=3", "collect.temperature=0.8", "collect.max_new_tokens=6",
)  # fmt: skip
MIXED = (
    "data.train=[{path: train.jsonl, limit: 16}, {name: gsm8k, limit: 8}]", "data.data_root=named",
    "collect.max_new_tokens=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("generated") / "project", epochs=2)
    write_rows(made.folder / "solved.jsonl", SOLVED)
    (made.folder / "named" / "gsm8k").mkdir(parents=True)
    write_rows(made.folder / "named" / "gsm8k" / "train.jsonl", SUMS)
    (made.folder / "judging.py").write_text(JUDGING)
    return made


@pytest.fixture(scope="module")
def finished(project: Project) -> Finished:
    return project.run("run", *DRAWN)


def here(project: Project, command: str, *more: str) -> Finished:
    return roma_ds_here(project.arguments(command, *more, ranks=1))


def outcome(project: Project) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = read_parquet(project.out / "collect" / "outcome.parquet")
    return found


def test_the_share_of_right_answers_decides_who_is_in_s(project: Project, finished: Finished) -> None:
    assert finished.code == 0, finished
    assert "judge: solved/train: a sample is answered right by" in finished.out
    assert "frozen pass: engine zero3, since answers are generated, which stream cannot" in finished.out
    found = outcome(project)
    assert [len(texts) for texts in found["generated"]] == [3] * 24
    shares = [sum(right) / 3 for right in found["right"]]
    assert found["margin"] == pytest.approx(shares, abs=1e-6) and len(set(shares)) > 2
    assert found["correct"] == [share >= 0.5 for share in shares] and 0 < sum(found["correct"]) < 24
    for texts, right, extracted in zip(found["generated"], found["right"], found["extracted"], strict=True):
        for text, is_right, what in zip(texts, right, extracted, strict=True):
            silent = "w5" in text.split()
            assert what == ("" if silent else str(is_right).lower())
            assert is_right == (not silent and sum(map(len, text.split())) % 2 == 0)
    facts = read_json(project.out / "collect" / "stage.json")["extra"]["answers"]["solved/train"]
    assert (facts["samples"], facts["answers"]) == (24, 72) and facts["judge"].endswith("judging.py:right")
    assert facts["right"] == pytest.approx(np.mean(found["right"]))
    assert not (project.out / "collect" / "unfinished-answers").exists()
    neighbours = np.load(project.out / "index" / "neighbours.npy")
    assert {row for row in neighbours.ravel() if row >= 0} <= set(np.flatnonzero(found["correct"]))


def test_loss_is_on_the_whole_solution_and_r_as_ever(project: Project, finished: Finished) -> None:
    samples = load_samples(project.out / "data" / "samples.parquet")
    assert [sample.target for sample in samples] == [f" {row['solution']}" for row in SOLVED]
    assert {sample.final for sample in samples} == {"w1 w2"}
    letters = replace(project, out=project.out.with_name("letters"))
    plain = "data.train=[{path: solved.jsonl, answer: solution, judge: likely}]"
    assert here(letters, "collect", plain).code == 0
    assert "generated" not in outcome(letters)
    assert outcome(letters)["loss"] == pytest.approx(outcome(project)["loss"], abs=1e-5)
    routing = [np.load(one.out / "collect" / "routing.npy") for one in (letters, project)]
    np.testing.assert_allclose(*routing, atol=2e-3)


def test_report_and_page_say_how_answers_were_judged(project: Project, finished: Finished) -> None:
    report = read_json(project.out / "report" / "report.json")
    assert report["training"]["answers"]["solved/train"]["answers"] == 72
    assert report["training"]["successful_after"] is None
    unread = report["training"]["answers"]["solved/train"]["unread"]
    assert 0 < unread < 1
    assert any(f"in {100 * unread:.1f}% of solved/train" in caution for caution in report["cautions"])
    page = (project.out / "report" / "report.html").read_text()
    assert "right of solved/train" in page and "3 drawn answers" in page and "not measured" in page


def test_ranks_batches_and_the_cache_change_nothing(
    project: Project, finished: Finished, tmp_path: Path
) -> None:
    other = replace(project, out=tmp_path / "out")
    words = ("eval.batch_size=1", "train.prefix_cache=off", "collect.engine=zero3")
    done = here(other, "collect", *DRAWN, *words)
    assert done.code == 0, done
    one, two = outcome(project), outcome(other)
    for name in ("id", "generated", "extracted", "right", "new_tokens", "correct", "predicted", "margin"):
        assert one[name] == two[name], name
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    # Of another seed the answers are others.
    seeded = here(other, "collect", *DRAWN, *words, "collect.seed=1")
    assert "changed since: generate" in seeded.out, seeded
    assert outcome(other)["generated"] != one["generated"]


def test_greedy_answers_are_those_of_the_evaluation(project: Project, tmp_path: Path) -> None:
    both = replace(project, out=tmp_path / "out")
    rows = [{key: row[key] for key in ("id", "question", "answer")} for row in SOLVED]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = (
        f"data.train=[{{path: {path}, judge: text}}]", "data.decontaminate=off", "collect.max_new_tokens=6",
        f"eval.tasks=[{{name: rows, path: {path}, scoring: generate}}]", "eval.max_new_tokens=6",
    )  # fmt: skip
    done = here(both, "eval", "--variant=base", *words)
    assert done.code == 0, done
    done = here(both, "collect", *words)
    assert done.code == 0 and "most likely tokens" in done.out, done
    asked = read_parquet(both.out / "eval" / "base.samples.parquet")
    found = outcome(both)
    assert found["generated"] == [[text] for text in asked["generated"]]
    assert found["new_tokens"] == [[count] for count in asked["new_tokens"]]
    assert found["correct"] == asked["correct"]
    # Rows that ask for what the model writes are answered right, and no others.
    texts = [text for (text,) in found["generated"]]
    usable = [place for place, text in enumerate(texts) if len(text.split()) > 1 and "Answer" not in text]
    assert len(usable) > 4
    own = [{**row, "answer": texts[place]} if place in usable[::2] else row for place, row in enumerate(rows)]
    write_rows(path, own)
    assert here(both, "collect", *words).code == 0
    assert outcome(both)["generated"] == found["generated"]
    assert list(np.flatnonzero(outcome(both)["correct"])) == usable[::2]


def test_gsm8k_trains_beside_letters(project: Project, tmp_path: Path) -> None:
    mixed = replace(project, out=tmp_path / "out")
    checked = here(mixed, "check", *MIXED)
    assert checked.code == 0, checked
    assert (
        "gsm8k/train: a sample is answered right by the final answer of what the model writes" in checked.out
    )
    assert "each of 8 samples has an answer to judge by" in checked.out
    done = here(mixed, "train", *MIXED, "roma.refresh=1", "train.epochs=1")
    assert done.code == 0, done
    assert "8 samples keep their place in S or outside: generated answers judge them" in done.out
    found = outcome(mixed)
    assert [texts is None for texts in found["generated"]] == [True] * 16 + [False] * 8
    samples = load_samples(mixed.out / "data" / "samples.parquet")
    assert all(f"#### {sample.final}" in sample.target for sample in samples[16:])
    assert not any(sample.final for sample in samples[:16])
    assert mixed.routers()


@pytest.mark.parametrize("command", ["check", "run"])
def test_what_cannot_be_generated_is_refused_before_the_work(
    project: Project, tmp_path: Path, command: str
) -> None:
    fresh = replace(project, out=tmp_path / "out")
    streamed = here(fresh, command, *DRAWN, "collect.engine=stream")
    refusal(
        streamed, "collect.engine is stream, which cannot generate", "set collect.engine to auto or zero3"
    )
    refusal(here(fresh, command, *DRAWN[1:]), "no dataset of data.train is judged by answers")
    fails = "data.train=[{path: solved.jsonl, judge: 'judging:fails'}]"
    refusal(here(fresh, command, fails), "judging.py:fails: sample solved/train/s5: KeyError")
    number = "data.train=[{path: solved.jsonl, answer: solution, judge: number}]"
    refusal(here(fresh, command, number), "no final number is found", "solved/train/s0")
    missing = "data.train=[{path: solved.jsonl, judge: 'judging:nothing'}]"
    refusal(here(fresh, command, missing), "has no nothing")
    there = {name.split("/")[0] for name in contents(fresh.out)} if fresh.out.exists() else set()
    assert there <= {"data"}, "nothing is embedded or collected"


def test_a_collection_with_equal_settings_is_up_to_date(project: Project, finished: Finished) -> None:
    again = project.run("collect", *DRAWN, ranks=1)
    assert again.code == 0 and "collect: up to date" in again.out and "judge: " not in again.out, again
    inputs = read_json(project.out / "collect" / "stage.json")["inputs"]
    assert inputs["right_share"] == 0.5 and inputs["generate"]["temperature"] == 0.8
