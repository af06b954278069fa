"""What is learned of a row with a worked solution, and what says that a generated answer to it is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from data_files import run_on as run_with
from data_files import write_rows

from roma_ds.config import RunConfig
from roma_ds.data import load_training
from roma_ds.data.learned import answer_form, generated_datasets, judge_name, refuse_useless
from roma_ds.data.sample import Sample
from roma_ds.data.store import data_inputs, load_samples, save_samples
from roma_ds.errors import UserError
from roma_ds.evaluation.answers import stated_answer
from roma_ds.evaluation.judges import Judges

WORKED = "Half of 48 is 24.\n48 + 24 = <<48+24=72>>72 clips.\n#### 72"
REASONED = "Plants take in what they make sugar of, which is no oxygen. The answer is B."


def run_on(
    folder: Path, train: Sequence[dict[str, Any]], overrides: Sequence[str] = (), **data: Any
) -> RunConfig:
    """A run on these entries of data.train; data: further keys of that section."""
    given = {"train": train, **data}
    return run_with(folder, *(f"data.{key}={json.dumps(value)}" for key, value in given.items()), *overrides)


def run_of(tmp_path: Path, rows: Sequence[dict[str, Any]], **keys: Any) -> RunConfig:
    """A run on one file of rows; keys: of its entry in data.train."""
    path = write_rows(tmp_path / "mine.jsonl", rows)
    return run_on(tmp_path, train=[{"path": str(path), **keys}])


def judged(run: RunConfig, texts: Sequence[str]) -> list[tuple[str, bool]]:
    """What is read out of texts for the run's first sample."""
    samples, _ = load_training(run)
    return [(one.extracted, one.correct) for one in Judges(run).judge(samples[0], texts)]


def test_the_named_task_learns_solutions_and_reads_their_last_number(tmp_path: Path) -> None:
    row = {"id": 0, "question": "How many clips?", "solution": WORKED, "answer": "72"}
    write_rows(tmp_path / "gsm8k" / "train.jsonl", [row])
    run = run_on(tmp_path, train=[{"name": "gsm8k"}], data_root=str(tmp_path))
    (item,) = run.data.train
    assert (answer_form(item), judge_name(item)) == ("solution", "final")
    assert generated_datasets(run) == {("gsm8k", "train"): "final"}
    (sample,), _ = load_training(run)
    assert sample.prompt == "Question: How many clips?\nAnswer:"
    assert (sample.target, sample.final, sample.options, sample.answer) == (f" {WORKED}", "72", (), -1)
    texts = ["24 first, 72.\n#### 72", "The answer is 72.00 clips", "#### 73", "I do not know", "$72"]
    assert judged(run, texts) == [("72", True), ("72", True), ("73", False), ("", False), ("72", True)]
    assert Judges(run).try_on([sample]).wrong == ()


def test_the_named_task_as_before(tmp_path: Path) -> None:
    row = {"id": 0, "question": "How many clips?", "solution": WORKED, "answer": "72"}
    write_rows(tmp_path / "gsm8k" / "train.jsonl", [row])
    named = {"name": "gsm8k", "answer": "text", "judge": "likely"}
    run = run_on(tmp_path, train=[named], data_root=str(tmp_path))
    (sample,), _ = load_training(run)
    assert (sample.target, sample.final) == (" 72", "") and not generated_datasets(run)


@pytest.mark.parametrize(
    ("row", "judge", "right", "wrong", "silent"),
    [
        ({"answer": WORKED}, "number", "So 72 it is.", "It is 71.", "None."),
        ({"answer": WORKED}, "final", "#### 72", "#### 24", "None."),
        ({"solution": WORKED, "answer": "72 clips"}, "final", "seventy and so on.\n#### 72", "7.2", "-"),
        ({"answer": REASONED}, "final", "The answer is (B)", "The answer is C.", "Plants take in gases."),
        ({"answer": REASONED}, "letter", "B", "I would pick A", "Well."),
        ({"answer": "It is far.\nThe answer is Paris."}, "text", "The answer is Paris", "Rome", ""),
        ({"answer": "Then \\boxed{x^2+1}."}, "final", "\\boxed{1+x^2}", "\\boxed{x^2}", ""),
    ],
)
def test_the_final_answer_is_found_in_the_rows(
    tmp_path: Path, row: dict[str, str], judge: str, right: str, wrong: str, silent: str
) -> None:
    run = run_of(tmp_path, [{"id": 0, "question": "q?", **row}], answer="solution", judge=judge)
    found = judged(run, [right, wrong, silent])
    assert [correct for _, correct in found] == [True, False, False]
    assert not found[2][0] or judge == "text"
    samples, _ = load_training(run)
    assert Judges(run).try_on(samples).wrong == ()


def test_options_are_listed_and_the_solution_is_learned(tmp_path: Path) -> None:
    row = {
        "id": 0, "question": "Which gas?", "choices": ["oxygen", "carbon dioxide"], "answer": 1,
        "solution": REASONED,
    }  # fmt: skip
    run = run_of(tmp_path, [row], answer="solution")
    (sample,), _ = load_training(run)
    assert sample.prompt == "Which gas?\nA. oxygen\nB. carbon dioxide\nAnswer:"
    assert (sample.target, sample.final, sample.options, sample.answer) == (f" {REASONED}", "B", (), -1)
    assert sample.choices == ("oxygen", "carbon dioxide")
    texts = ["So the answer is B.", "It must be carbon dioxide.", "A", "The answer is oxygen.", "Hm."]
    assert judged(run, texts) == [("B", True), ("B", True), ("A", False), ("A", False), ("", False)]
    prompt = {"id": 0, "prompt": "Which gas, oxygen or carbon dioxide?", **row}
    del prompt["question"]
    verbatim = run_of(tmp_path, [prompt], answer="solution")
    assert load_training(verbatim)[0][0].final == "carbon dioxide"
    assert judged(verbatim, ["It takes in carbon dioxide.", "oxygen"])[0] == ("carbon dioxide", True)


def test_letters_may_be_learned_and_answers_generated(tmp_path: Path) -> None:
    row = {"id": 0, "question": "Which?", "choices": ["oxygen", "helium"], "answer": 0}
    run = run_of(tmp_path, [row], judge="final")
    (sample,), _ = load_training(run)
    assert (sample.target, sample.options, sample.final) == (" A", (" A", " B"), "")
    assert judged(run, ["I think A.", "The answer is B"]) == [("A", True), ("B", False)]
    with pytest.raises(UserError, match="no final number is found"):
        judged(run_of(tmp_path, [row], judge="number"), ["1"])


def test_options_without_a_solution_are_refused(tmp_path: Path) -> None:
    row = {"id": 7, "question": "Which?", "choices": ["oxygen", "helium"], "answer": 0}
    with pytest.raises(UserError, match="sample mine/train/7: there is no solution in its row"):
        load_training(run_of(tmp_path, [row], answer="solution"))


def test_rows_without_a_final_answer_are_refused_together(tmp_path: Path) -> None:
    good = {"id": "good", "question": "q?", "answer": WORKED}
    bad = [{"id": f"b{n}", "question": f"q{n}?", "answer": "It is so.\nAnd so on."} for n in range(5)]
    run = run_of(tmp_path, [good, *bad], answer="solution")
    samples, _ = load_training(run)
    with pytest.raises(UserError, match=r"mine/train/b0, mine/train/b1, mine/train/b2 and 2 more"):
        Judges(run).try_on(samples)


def test_a_judge_that_disagrees_with_its_rows_is_named(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"q{n}?", "solution": WORKED, "answer": str(72 + n)} for n in range(3)]
    run = run_of(tmp_path, rows, answer="solution")
    samples, _ = load_training(run)
    trial = Judges(run).try_on(samples)
    assert (trial.samples, trial.wrong) == (3, ("mine/train/1", "mine/train/2"))


FUNCTIONS = '''\
import helpers_of_mine

def right(text, sample):
    """Longer than the question, and no question itself."""
    if "?" in text:
        return None
    return helpers_of_mine.longer(text, sample["question"])

def fails(text, sample):
    return 1 / len(sample["choices"]) > 0

def counts(text, sample):
    return len(text)

number = 3
'''


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "judging.py").write_text(FUNCTIONS)
    (tmp_path / "helpers_of_mine.py").write_text(
        "def longer(one, other):\n    return len(one) > len(other)\n"
    )
    return tmp_path / "judging.py"


def test_a_function_beside_the_config(tmp_path: Path, functions: Path) -> None:
    rows = [{"id": 0, "question": "q?", "answer": "a b c"}]
    run = run_of(tmp_path, rows, judge="judging:right")
    # An absolute path, so that the resolved config finds it from elsewhere.
    assert run.data.train[0].judge == f"{functions}:right"
    assert run_of(tmp_path, rows, judge="judging.py:right").data.train[0].judge == f"{functions}:right"
    assert judged(run, ["far longer", "s", "what?"]) == [("true", True), ("false", False), ("", False)]
    before = Judges(run).identity()
    functions.write_text(f"{FUNCTIONS}\n# another text\n")
    assert Judges(run).identity() != before


def test_a_function_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "judging_on_path.py").write_text("def right(text, sample): return sample['id'] == text\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    run = run_of(tmp_path, [{"id": 0, "question": "q?", "answer": "a"}], judge="judging_on_path:right")
    assert judged(run, ["mine/train/0", "mine"]) == [("true", True), ("false", False)]
    sys.modules.pop("judging_on_path")


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("judging:fails", "sample mine/train/0: ZeroDivisionError: division by zero"),
        ("judging:counts", "sample mine/train/0: it returns 2"),
        ("judging:missing", "has no missing"),
        ("judging:number", "number is no function"),
        ("no_such_module_here:right", "cannot be imported: ModuleNotFoundError"),
        ("nowhere.py:right", "nowhere.py does not exist"),
        ("broken:right", "cannot be imported: ValueError: not today"),
    ],
)
def test_faults_of_functions_are_the_users(tmp_path: Path, functions: Path, judge: str, says: str) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('not today')\n")
    run = run_of(tmp_path, [{"id": 0, "question": "q?", "answer": "a"}], judge=judge)
    samples, _ = load_training(run)
    with pytest.raises(UserError, match=says) as caught:
        Judges(run).try_on(samples)
    assert caught.value.fix


def test_a_misspelled_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be likely, final, number, letter, text, .* got 'nummer'"):
        run_of(tmp_path, [{"id": 0, "question": "q?", "answer": "a"}], judge="nummer")


def test_keys_of_generated_answers_need_a_judge(tmp_path: Path) -> None:
    rows = [{"id": 0, "question": "q?", "answer": "a"}]
    with pytest.raises(UserError, match="4 answers at temperature 0 are all the same"):
        run_on(tmp_path, train=[{"path": "mine.jsonl"}], overrides=["collect.samples=4"])
    drawn = ["collect.samples=4", "collect.temperature=0.7"]
    path = str(write_rows(tmp_path / "mine.jsonl", rows))
    with pytest.raises(UserError, match=r"are of no use: no dataset of data\.train is judged"):
        refuse_useless(run_on(tmp_path, train=[{"path": path}], overrides=drawn))
    refuse_useless(run_on(tmp_path, train=[{"path": path, "judge": "text"}], overrides=drawn))
    stream = ["collect.engine=stream"]
    refuse_useless(run_on(tmp_path, train=[{"path": path}], overrides=stream))
    with pytest.raises(UserError, match=r"collect\.engine is stream, which cannot generate.*mine/train"):
        refuse_useless(run_on(tmp_path, train=[{"path": path, "judge": "text"}], overrides=stream))


def test_the_answer_apart_is_kept_in_the_files_of_solutions_alone(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    plain = Sample("a/b/1", "a", "b", "p", "q", (), -1, " t", ())
    worked = Sample("a/b/2", "a", "b", "p", "q", (), -1, " so 3", (), final="3")
    for samples, there in (([plain], False), ([plain, worked], True), ([worked], True)):
        save_samples(tmp_path / "samples.parquet", samples)
        assert load_samples(tmp_path / "samples.parquet") == samples
        assert ("final" in pq.read_schema(tmp_path / "samples.parquet").names) is there


def test_a_mixture_of_solutions_and_others_keeps_both(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"id": 0, "question": "q?", "answer": "a"}])
    two = write_rows(
        tmp_path / "two.jsonl", [{"id": 0, "question": "r?", "solution": WORKED, "answer": "72"}]
    )
    train = [{"path": str(one)}, {"path": str(two), "answer": "solution"}]
    samples, _ = load_training(run_on(tmp_path, train=train))
    assert [sample.final for sample in samples] == ["", "72"]


def test_folders_from_before_stay_up_to_date(tmp_path: Path) -> None:
    run = run_of(tmp_path, [{"id": 0, "question": "q?", "answer": "a"}])
    inputs = data_inputs(run)
    assert inputs["training"][0]["answer"] == "letter" and "final" not in inputs["columns"]
    assert (
        data_inputs(run_of(tmp_path, [{"id": 0, "question": "q?", "answer": "a"}], answer="letter")) == inputs
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (WORKED, "72"),
        (REASONED, "B"),
        ("one line", "one line"),
        ("two lines\nwithout an end", ""),
        ("<think>The answer is 3.</think>\nThe answer is 4.", "4"),
        ("The answer is 1.\nNo.\n#### 2", "2"),
    ],
)
def test_what_a_solution_ends_in(text: str, answer: str) -> None:
    assert stated_answer(text) == answer


def test_conversations_end_in_an_answer_too(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": WORKED}]
    run = run_of(tmp_path, [{"id": 0, "messages": turns}], judge="final")
    samples, _ = load_training(run)
    assert (samples[0].target, samples[0].final) == (f" {WORKED}", "")
    assert judged(run, ["#### 72", "#### 71"]) == [("72", True), ("71", False)]


def test_a_chat_template_leaves_the_solution_as_it_is(tmp_path: Path) -> None:
    from datetime import date

    from roma_ds.data.chat import ChatTemplate
    from roma_ds.testing.chats import OLMOE, chat_tokenizer

    row = {"id": 0, "question": "How many?", "solution": WORKED, "answer": "72"}
    path = str(write_rows(tmp_path / "mine.jsonl", [row]))
    run = run_on(tmp_path, train=[{"path": path, "answer": "solution"}], template="chat")
    chat = ChatTemplate(chat_tokenizer(OLMOE), run.data.chat, date(2026, 1, 1))
    (sample,), _ = load_training(run, chat)
    assert sample.templated and (sample.target, sample.final) == (WORKED, "72")
    assert [one.correct for one in Judges(run).judge(sample, [WORKED, "#### 7"])] == [True, False]
