"""Prompts of the known tasks in cloze scoring, descriptions and solved examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import question, run_on, write_rows

from roma_ds.data import load_evaluation
from roma_ds.data.sample import Sample
from roma_ds.data.store import data_inputs, run_data
from roma_ds.data.tasks import TASKS
from roma_ds.errors import UserError


def one(folder: Path, name: str, row: dict[str, Any], *overrides: str) -> Sample:
    split = TASKS[name].split
    write_rows(folder / "data" / name / f"{split}.jsonl", [{"id": "1", **row}])
    run = run_on(folder, f"eval.tasks=[{name}]", "eval.data_root=data", *overrides)
    (sample,) = load_evaluation(run)
    return sample


CLOZE = "eval.scoring=cloze"


def test_most_tasks_ask_and_take_texts_as_they_are(tmp_path: Path) -> None:
    row = {"question": "Why  so? ", "choices": ["a ", "b", "c"], "answer": 0}
    for name in ("arc_easy", "arc_challenge", "piqa"):
        sample = one(tmp_path, name, row, CLOZE)
        assert sample.prompt == "Question: Why  so? \nAnswer:"
        assert (sample.options, sample.target, sample.choices) == (
            (" a ", " b", " c"),
            " a ",
            ("a ", "b", "c"),
        )


def test_boolq_begins_with_its_passage(tmp_path: Path) -> None:
    row = {"passage": "It is.", "question": "is it?", "choices": ["no", "yes"], "answer": 1}
    sample = one(tmp_path, "boolq", row, CLOZE)
    assert sample.prompt == "It is.\nQuestion: is it?\nAnswer:"
    assert (sample.options, sample.target) == ((" no", " yes"), " yes")


def test_hellaswag_goes_on_where_its_scene_ends(tmp_path: Path) -> None:
    row = {"question": "Roof: A man sits. He ", "choices": ["falls.", "leaves."], "answer": 1}
    sample = one(tmp_path, "hellaswag", row, CLOZE)
    # Space at the end of the prompt is counted to the options, beside the one that separates them.
    assert (sample.prompt, sample.options) == ("Roof: A man sits. He", ("  falls.", "  leaves."))


def test_winogrande_scores_what_follows_the_filled_gap(tmp_path: Path) -> None:
    row = {"question": "Ann saw Bea so _ left. ", "choices": ["Ann", "Bea"], "answer": 1}
    sample = one(tmp_path, "winogrande", row, CLOZE)
    assert sample.contexts == ("Ann saw Bea so Ann", "Ann saw Bea so Bea")
    assert (sample.options, sample.target, sample.answer) == ((" left.", " left."), " left.", 1)
    letters = one(tmp_path, "winogrande", row)
    assert letters.contexts == () and letters.prompt.startswith("Ann saw Bea so _ left.\nA. Ann\nB. Bea\n")
    with pytest.raises(UserError, match=r"sample winogrande/validation/1: there is no `_` in its question"):
        one(tmp_path, "winogrande", {**row, "question": "Ann saw Bea."}, CLOZE)


def test_mmlu_is_described_and_asks_for_letters_in_every_scoring(tmp_path: Path) -> None:
    row = {"subject": "high_school_law", "question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 2}
    for scoring in ("letter", "cloze", "generate"):
        sample = one(tmp_path, "mmlu", row, f"eval.scoring={scoring}")
        assert sample.prompt == (
            "The following are multiple choice questions (with answers) about high school law.\n\n"
            "Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
        )
        assert sample.options == (" A", " B", " C", " D")


def test_a_task_of_ones_own_is_freed_of_outer_space(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [question(1, question=" Q? ", choices=["a ", "b"], answer=0)])
    sample = load_evaluation(run_on(tmp_path, CLOZE))[0]
    assert (sample.prompt, sample.options) == ("Question: Q?\nAnswer:", (" a", " b"))


def test_gsm8k_is_generated_and_its_examples_are_worked(tmp_path: Path) -> None:
    rows = [
        {
            "id": str(n),
            "question": f"{n} + 1?",
            "solution": f"It is {n + 1}.\n#### {n + 1}",
            "answer": f"{n + 1}",
        }
        for n in range(12)
    ]
    write_rows(tmp_path / "data" / "gsm8k" / "train.jsonl", rows[:10])
    write_rows(tmp_path / "data" / "gsm8k" / "test.jsonl", rows[10:])
    run = run_on(tmp_path, "eval.tasks=[{name: gsm8k, scoring: generate, shots: 8}]", "eval.data_root=data")
    first, second = load_evaluation(run)
    assert (first.options, first.target, first.answer) == ((), " 11", -1)
    examples, asked = first.prompt.rsplit("\n\n", 1)
    assert asked == "Question: 10 + 1?\nAnswer:"
    assert second.prompt.startswith(examples) and examples.count("Question: ") == 8
    for example in examples.split("\n\n"):
        number = int(example.split()[1])
        assert example == f"Question: {number} + 1?\nAnswer: It is {number + 1}.\n#### {number + 1}"


def shot_run(folder: Path, *overrides: str) -> list[Sample]:
    write_rows(folder / "shots.jsonl", [question(place) for place in range(2000, 2010)])
    task = "eval.tasks=[{name: mine, path: test.jsonl, shots_path: shots.jsonl}]"
    return load_evaluation(run_on(folder, task, *overrides))


def test_all_questions_have_the_same_examples_by_the_seed(tmp_path: Path) -> None:
    plain = load_evaluation(run_on(tmp_path))
    found: dict[int, str] = {}
    for seed in (0, 0, 1, 2):
        shown = shot_run(tmp_path, "eval.shots=3", f"eval.seed={seed}")
        prefaces = {
            sample.prompt.removesuffix(bare.prompt) for sample, bare in zip(shown, plain, strict=True)
        }
        (preface,) = prefaces
        assert preface.count("Answer: ") == 3 and preface.endswith("\n\n")
        assert [sample.target for sample in shown] == [sample.target for sample in plain]
        assert found.setdefault(seed, preface) == preface
    assert len(set(found.values())) == 3
    assert shot_run(tmp_path, "eval.shots=3", "train.seed=5")[0].prompt.startswith(found[0])


def test_examples_are_recorded_and_a_change_of_them_is_a_change_of_the_data(tmp_path: Path) -> None:
    task = "eval.tasks=[{name: mine, path: test.jsonl, shots_path: shots.jsonl, shots: 2}]"
    shot_run(tmp_path)
    manifest = run_data(run_on(tmp_path, task), tmp_path / "out")
    (entry,) = manifest["evaluation"]["datasets"]
    assert len(entry["shots"][""]) == 2 and entry["shots_source"].endswith("shots.jsonl")
    inputs = [data_inputs(run_on(tmp_path, task, f"eval.seed={seed}")) for seed in (0, 0, 1)]
    assert json.dumps(inputs[0]) == json.dumps(inputs[1]) != json.dumps(inputs[2])


def test_an_example_never_asks_what_is_evaluated(tmp_path: Path) -> None:
    evaluated = load_evaluation(run_on(tmp_path))
    write_rows(tmp_path / "shots.jsonl", [question(1000 + place) for place in range(20)] + [question(7)])
    task = "eval.tasks=[{name: mine, path: test.jsonl, shots_path: shots.jsonl, shots: 1}]"
    for sample, bare in zip(load_evaluation(run_on(tmp_path, task)), evaluated, strict=True):
        assert sample.prompt.startswith("which of these is number 7 of") and sample.prompt.endswith(
            bare.prompt
        )
    with pytest.raises(
        UserError, match=r"eval.shots is 2, but .*shots.jsonl \(shots\) has 1 rows that are not"
    ):
        load_evaluation(run_on(tmp_path, task.replace("shots: 1", "shots: 2")))


def test_examples_of_mmlu_are_of_the_subject(tmp_path: Path) -> None:
    def rows(first: int, count: int) -> list[dict[str, Any]]:
        return [
            question(first + place, subject=subject, id=f"{subject}/{place}")
            for subject in ("law", "art")
            for place in range(count)
        ]

    write_rows(tmp_path / "data" / "mmlu" / "dev.jsonl", rows(0, 5))
    write_rows(tmp_path / "data" / "mmlu" / "test.jsonl", rows(100, 3))
    given = ("eval.tasks=[mmlu]", "eval.data_root=data")
    for sample in load_evaluation(run_on(tmp_path, *given, "eval.shots=5")):
        description, *examples, asked = sample.prompt.split("\n\n")
        assert description.endswith(f"about {sample.subject}.") and asked.endswith("Answer:")
        # All five in the order of the file, as the harness has them.
        assert [example.split("number ")[1].split()[0] for example in examples] == list("01234")
    with pytest.raises(UserError, match=r"eval.shots is 6, but .*dev.jsonl \(dev\) has 5 rows on law"):
        load_evaluation(run_on(tmp_path, *given, "eval.shots=6"))


def test_examples_without_a_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"eval\.shots is 1, but the task mine names no file of solved examples"
    ):
        load_evaluation(run_on(tmp_path, "eval.shots=1"))
    write_rows(tmp_path / "data" / "arc_easy" / "test.jsonl", [question(1)])
    given = ("eval.tasks=[{name: arc_easy, shots_split: test}]", "eval.data_root=data", "eval.shots=1")
    with pytest.raises(UserError, match="no split for solved examples: test is evaluated"):
        load_evaluation(run_on(tmp_path, *given))
    with pytest.raises(
        UserError, match=r"no train\.jsonl or other file of rows .*; that folder holds test\.jsonl"
    ):
        load_evaluation(run_on(tmp_path, "eval.tasks=[arc_easy]", *given[1:]))
