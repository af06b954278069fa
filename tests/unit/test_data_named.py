"""Datasets by name: local folders, the hub's columns, and what is said when neither helps."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from data_files import question, run_on, write_rows

from roma_ds.data import NAMED, load_evaluation, load_training, preview
from roma_ds.data.named import hub_rows_of, named_dataset
from roma_ds.data.shapes.mixture_rows import BIGBENCH, SUPERGLUE
from roma_ds.data.tasks import TASKS
from roma_ds.errors import EnvironmentFault, UserError

HUB_ROWS: dict[str, dict[str, Any]] = {
    "arc_easy": {
        "id": "M1",
        "question": "q?",
        "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    "arc_challenge": {
        "id": "M2",
        "question": "q?",
        "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    },
    "openbookqa": {
        "id": "7-1",
        "question_stem": "q?",
        "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
        "answerKey": " C",
    },
    "commonsense_qa": {
        "id": "x",
        "question": "q?",
        "question_concept": "z",
        "choices": {"label": ["A", "B", "C"], "text": ["a", "b", "c"]},
        "answerKey": "C",
    },
    "boolq": {"question": "is it", "passage": "It is.", "answer": True},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 1},
    "hellaswag": {
        "ind": 4,
        "activity_label": "Roof",
        "ctx_a": "A man [header] sits [title] he",
        "ctx_b": "",
        "label": "3",
        "endings": ["a", "b [step] x", "c", "d"],
    },
    "winogrande": {"sentence": "Ann saw _ .", "option1": "Bea", "option2": "Cid", "answer": "2"},
    "mmlu": {"question": "q?", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 2},
    "gsm8k": {"question": "6 x 12?", "answer": "It is 6 x 12 = <<6*12=72>>72.\n#### 72"},
    "sciq": {
        "question": "q?",
        "distractor1": "a",
        "distractor2": "b",
        "distractor3": "c",
        "correct_answer": "right",
        "support": "s",
    },
    "social_iqa": {
        "context": "Ann fell.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c",
        "label": "3",
    },
    "multirc": {"paragraph": "P.", "question": "Who?", "answer": "Ann", "label": 1},
    "knowref": {
        "swapped_sentence": "Ann saw Bea before [she] left .",
        "original_sentence": "x",
        "candidate0": "Ann",
        "candidate1": "Bea",
        "correct_candidate": "candidate_1",
    },
    "superglue": {
        "premise": "It rains.", "hypothesis": "It is wet.", "label": 1, "question": "effect", "choice1": "a",
        "choice2": "b", "sentence1": "s", "sentence2": "t", "word": "w", "text": "Ann left, she did.",
        "span1_text": "Ann", "span2_text": "she",
    },
    "bigbench": {
        "inputs": "\nQ: Is it?\n  choice: no\n  choice: yes\nA: ",
        "targets": ["yes"],
        "multiple_choice_targets": ["no", "yes"],
        "multiple_choice_scores": [0, 1],
    },
}  # fmt: skip
EXPECTED = {
    "arc_easy": {"id": "M1", "question": "q?", "choices": ["a", "b", "c"], "answer": 2},
    "arc_challenge": {"id": "M2", "question": "q?", "choices": ["a", "b", "c"], "answer": 2},
    "openbookqa": {"id": "7-1", "question": "q?", "choices": ["a", "b", "c"], "answer": 2},
    "commonsense_qa": {"id": "x", "question": "q?", "choices": ["a", "b", "c"], "answer": 2},
    "boolq": {"id": "0", "question": "is it?", "passage": "It is.", "choices": ["no", "yes"], "answer": 1},
    "piqa": {"id": "0", "question": "g", "choices": ["a", "b"], "answer": 1},
    "hellaswag": {
        "id": "0",
        "question": "Roof: A man sits. he",
        "choices": ["a", "b x", "c", "d"],
        "answer": 3,
    },
    "winogrande": {"id": "0", "question": "Ann saw _ .", "choices": ["Bea", "Cid"], "answer": 1},
    "mmlu": {"id": "law/0", "subject": "law", "question": "q?", "choices": ["a", "b", "c", "d"], "answer": 2},
    "gsm8k": {
        "id": "0",
        "question": "6 x 12?",
        "solution": "It is 6 x 12 = <<6*12=72>>72.\n#### 72",
        "answer": "72",
    },
    "social_iqa": {"id": "0", "question": "Ann fell. Why?", "choices": ["a", "b", "c"], "answer": 2},
    "multirc": {
        "id": "0", "passage": "P.", "question": 'Who? Is "Ann" a right answer?', "choices": ["no", "yes"],
        "answer": 1,
    },
    "knowref": {
        "id": "0",
        "question": "Ann saw Bea before [she] left . Whom does the word in brackets stand for?",
        "choices": ["Ann", "Bea"],
        "answer": 1,
    },
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub answers, by dataset; an exception is raised instead."""
    answers: dict[str, Any] = {}
    asked: list[tuple[Any, ...]] = []

    class DatasetsError(Exception):
        pass

    def load_dataset(path: str, config: str | None, split: str) -> Any:
        asked.append((path, config, split))
        answer = answers["rows"]
        if isinstance(answer, Exception):
            raise answer
        return answer

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    fake.exceptions = types.SimpleNamespace(DatasetsError=DatasetsError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    answers["asked"] = asked
    answers["DatasetsError"] = DatasetsError
    return answers


def test_every_named_dataset_has_a_test() -> None:
    assert set(NAMED) == set(HUB_ROWS) == {*EXPECTED, "sciq", "superglue", "bigbench"}
    for name, task in TASKS.items():
        assert task.split in NAMED[name].splits
        assert task.shots_split in NAMED[name].splits and task.shots_split != task.split


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_hub_rows_become_rows_of_ours(hub: dict[str, Any], name: str) -> None:
    hub["rows"] = [HUB_ROWS[name]]
    dataset = NAMED[name]
    split = TASKS[name].split if name in TASKS else dataset.splits[-1]
    assert hub_rows_of(name, split) == [EXPECTED[name]]
    assert hub["asked"] == [(dataset.hub_path, dataset.hub_config, split)]


def test_sciq_answers_are_not_all_in_one_place(hub: dict[str, Any]) -> None:
    hub["rows"] = [{**HUB_ROWS["sciq"], "question": f"question {place}?"} for place in range(80)]
    rows = hub_rows_of("sciq", "train")
    assert all(row["choices"][row["answer"]] == "right" for row in rows)
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}
    assert rows == hub_rows_of("sciq", "train")


def test_a_dataset_in_parts_has_ids_of_their_names(hub: dict[str, Any]) -> None:
    hub["rows"] = [HUB_ROWS["superglue"]]
    rows = {row["id"]: row for row in hub_rows_of("superglue", "train")}
    assert [config for _, config, _ in hub["asked"]] == list(SUPERGLUE) and "boolq" not in SUPERGLUE
    assert set(rows) == {f"{name}/0" for name in SUPERGLUE}
    assert rows["cb/0"]["choices"] == ["true", "false", "neither"] and rows["cb/0"]["answer"] == 1
    assert rows["rte/0"]["question"] == "It is wet. True or false?"
    assert rows["copa/0"]["question"] == "It rains. What happened as a result?"
    assert rows["wic/0"]["passage"] == "s\nt" and '"w"' in rows["wic/0"]["question"]
    assert rows["wsc/0"]["question"] == 'Does "she" stand for "Ann"?'


def test_rows_of_bigbench_that_are_no_choice_are_left_out(hub: dict[str, Any]) -> None:
    good = HUB_ROWS["bigbench"]
    two_right = {**good, "multiple_choice_scores": [1, 1]}
    free = {**good, "multiple_choice_targets": [], "multiple_choice_scores": []}
    hub["rows"] = [free, good, two_right]
    rows = hub_rows_of("bigbench", "train")
    assert len(rows) == len(BIGBENCH) and len(set(BIGBENCH)) == len(BIGBENCH)
    assert rows[0] == {"id": f"{BIGBENCH[0]}/1", "question": "Is it?", "choices": ["no", "yes"], "answer": 1}


def test_hidden_answers_are_named(hub: dict[str, Any]) -> None:
    hub["rows"] = [HUB_ROWS["arc_easy"], {**HUB_ROWS["arc_easy"], "id": "M3", "answerKey": ""}]
    with pytest.raises(UserError, match=r"allenai/ai2_arc on the hub, test row 1: answer must be the index"):
        hub_rows_of("arc_easy", "test")


def test_one_blank_option_is_named_and_no_other_split_is_advised(hub: dict[str, Any]) -> None:
    good = HUB_ROWS["arc_easy"]
    blank = {**good, "id": "M3", "choices": {"text": ["a" * 99, "b", " "], "label": ["1", "2", "3"]}}
    hub["rows"] = [*({**good, "id": str(place)} for place in range(5)), blank]
    with pytest.raises(UserError) as caught:
        hub_rows_of("arc_easy", "test")
    assert caught.value.message.startswith("allenai/ai2_arc on the hub, test row 5: choices must be")
    assert caught.value.message.endswith("; number 3 is not")
    assert "arc_easy/test.jsonl below data_root" in str(caught.value.fix)
    hub["rows"] = [{**good, "id": str(place), "answerKey": ""} for place in range(3)] + [blank]
    with pytest.raises(UserError) as caught:
        hub_rows_of("arc_easy", "test")
    assert caught.value.fix == "choose a split whose answers are public"


def test_an_unreachable_hub_is_a_fault_of_the_environment(hub: dict[str, Any]) -> None:
    for error in (
        ConnectionError("Couldn't reach it\nmore"),
        hub["DatasetsError"]("no such"),
        ValueError("bad"),
    ):
        hub["rows"] = error
        with pytest.raises(EnvironmentFault) as caught:
            hub_rows_of("openbookqa", "train")
        assert caught.value.exit_code == 3
        assert str(error).splitlines()[0] in caught.value.message
        assert "data_root" in str(caught.value.fix)


def test_other_columns_are_named(hub: dict[str, Any]) -> None:
    hub["rows"] = [{"text": "x"}]
    with pytest.raises(EnvironmentFault, match="has other columns than expected: KeyError"):
        hub_rows_of("openbookqa", "train")


def test_without_a_network_the_real_library_ends_in_the_same_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        pytest.skip("the hub is not switched off")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="cannot load openbookqa from allenai/openbookqa on the hub"):
        hub_rows_of("openbookqa", "train")


def test_unknown_names_and_splits_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no dataset is known by the name 'arc-easy'; did you mean 'arc_easy'\?"
    ):
        named_dataset("arc-easy")
    with pytest.raises(UserError, match=r"arc_easy has no split 'tests'; did you mean 'test'\?"):
        hub_rows_of("arc_easy", "tests")
    with pytest.raises(UserError, match="no dataset is known by the name 'mine2'"):
        load_evaluation(run_on(tmp_path, "eval.tasks=[mine2]"))


def test_a_local_folder_stands_in_for_the_hub(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "openbookqa" / "train.jsonl", [question(place) for place in range(4)])
    write_rows(tmp_path / "data" / "arc_easy" / "test.jsonl", [question(place) for place in range(50, 53)])
    run = run_on(
        tmp_path,
        "data.train=[{name: openbookqa}]",
        "data.data_root=data",
        "eval.tasks=[arc_easy]",
        "eval.data_root=data",
    )
    samples, records = load_training(run)
    assert [sample.id for sample in samples] == [f"openbookqa/train/q{place}" for place in range(4)]
    assert records[0].source == str(tmp_path / "data" / "openbookqa" / "train.jsonl")
    assert [sample.split for sample in load_evaluation(run)] == ["test"] * 3


def test_a_split_that_the_folder_lacks_is_named_with_what_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "arc_easy" / "validation.jsonl", [question(1)])
    roots = ("eval.data_root=data", "eval.tasks=[arc_easy]")
    with pytest.raises(
        UserError, match=r"no test\.jsonl or other file of rows .*; that folder holds validation\.jsonl"
    ):
        load_evaluation(run_on(tmp_path, *roots))
    assert load_evaluation(run_on(tmp_path, *roots, "eval.tasks.0.split=validation"))
    with pytest.raises(UserError, match="there is no such folder or it is empty"):
        load_evaluation(run_on(tmp_path, "eval.data_root=elsewhere", "eval.tasks=[arc_easy]"))


BENCHMARKS = Path(os.environ.get("ROMA_DS_TEST_DATA", "/nonexistent"))


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="ROMA_DS_TEST_DATA names no folder with benchmark files")
def test_real_benchmark_files_load(tmp_path: Path) -> None:
    run = run_on(
        tmp_path,
        "data.train=[{name: openbookqa, limit: 500}]",
        "eval.tasks=[arc_easy, arc_challenge]",
        "eval.limit=200",
        f"data.data_root={BENCHMARKS}",
        f"eval.data_root={BENCHMARKS}",
    )
    samples, _ = load_training(run)
    assert len(samples) == 500 and len(load_evaluation(run)) == 400
    assert re.search(r"\nA\. .*\nB\. [\s\S]*\nAnswer:<< [A-D]>>", preview(samples, 1))
