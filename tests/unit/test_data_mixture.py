"""The mixture: limits, seeds, exclusion, decontamination, and what is said when nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import question, run_on, write_rows

from roma_ds.data import load_evaluation, load_training
from roma_ds.data.asked import asked
from roma_ds.data.decontamination import Decontamination
from roma_ds.errors import UserError

NGRAM = 13
LONG = "the quick brown fox jumps over the lazy dog while seven small mice look on from the barn"


def ids(samples: list) -> list[str]:
    return [sample.id for sample in samples]


def test_everything_is_used_in_the_order_of_the_file(tmp_path: Path) -> None:
    samples, records = load_training(run_on(tmp_path))
    assert ids(samples) == [f"train/train/q{place}" for place in range(20)]
    assert (records[0].rows, records[0].used, records[0].dropped, records[0].over_limit) == (20, 20, {}, 0)
    assert ids(load_evaluation(run_on(tmp_path)))[0] == "mine/test/q1000"


def test_a_limit_takes_a_subset_by_seed_and_smaller_limits_subsets_of_it(tmp_path: Path) -> None:
    def chosen(limit: int, seed: int = 0) -> list[str]:
        run = run_on(tmp_path, f"data.train.0.limit={limit}", f"train.seed={seed}")
        samples, records = load_training(run)
        assert (records[0].used, records[0].over_limit) == (limit, 20 - limit)
        return ids(samples)

    everything = ids(load_training(run_on(tmp_path))[0])
    assert chosen(8) == chosen(8)
    assert chosen(8) != chosen(8, seed=1)
    assert set(chosen(5)) < set(chosen(8))
    assert chosen(8) == [identity for identity in everything if identity in set(chosen(8))]
    assert chosen(8) != everything[:8]


def test_evaluation_limits_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    runs = [run_on(tmp_path, "eval.limit=6", f"train.seed={seed}") for seed in range(3)]
    first, *others = [ids(load_evaluation(run)) for run in runs]
    assert len(first) == 6 and all(other == first for other in others)
    assert len(load_evaluation(run_on(tmp_path, "eval.limit=6", "eval.tasks.0.limit=9"))) == 9


def test_the_answer_form_of_evaluation_follows_the_scoring(tmp_path: Path) -> None:
    assert load_evaluation(run_on(tmp_path, "eval.scoring=letter"))[0].options == (" A", " B", " C", " D")
    assert load_evaluation(run_on(tmp_path, "eval.scoring=cloze"))[0].options == (
        " one",
        " two",
        " three",
        " four",
    )
    assert load_training(run_on(tmp_path, "data.train.0.answer=text"))[0][1].target == " two"


def test_several_datasets_are_put_together(tmp_path: Path) -> None:
    write_rows(tmp_path / "more" / "extra.jsonl", [question(place) for place in range(3)])
    run = run_on(tmp_path, "data.train=[{path: train.jsonl, limit: 2}, {path: more/extra.jsonl, split: b}]")
    samples, records = load_training(run)
    assert [sample.task for sample in samples] == ["train"] * 2 + ["extra"] * 3
    assert ids(samples)[-1] == "extra/b/q2"
    assert [record.used for record in records] == [2, 3]


def test_training_questions_that_are_evaluated_are_dropped(tmp_path: Path) -> None:
    same = question(3, id="same", question="Which of THESE is number 3, of the 4 things?!")
    near = question(4, id="near", question="which of these is number 4 of the 5 thing")
    write_rows(tmp_path / "test.jsonl", [same, near])
    samples, records = load_training(run_on(tmp_path))
    assert records[0].dropped == {"exact_question": ["train/train/q3"]}
    assert len(samples) == 19


def test_thirteen_words_in_a_row_are_too_many(tmp_path: Path) -> None:
    words = LONG.split()
    shared, one_less = " ".join(words[:NGRAM]), " ".join(words[: NGRAM - 1])
    write_rows(tmp_path / "test.jsonl", [question(0, question=f"Tell me: {LONG}?")])
    write_rows(
        tmp_path / "train.jsonl",
        [
            question(1, question=f"He said {shared.upper()}, and what then?"),
            question(2, question=f"He said {one_less}, and what then?"),
            question(3, question="What then?", passage=f"It is known that {shared}."),
            question(4, question="What then, by the choices?", choices=[shared, "no"], answer=0),
        ],
    )
    samples, records = load_training(run_on(tmp_path))
    assert records[0].dropped == {"ngram": ["train/train/q1", "train/train/q3"]}
    assert ids(samples) == ["train/train/q2", "train/train/q4"]


def test_the_run_of_words_can_be_shorter_and_the_filter_off(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "test.jsonl", [question(3), question(2000, question="Why is the sky so very blue?")]
    )
    write_rows(tmp_path / "train.jsonl", [question(3), question(1, question="I know the sky so very well")])
    with pytest.raises(UserError, match="4 words in a row"):
        load_training(run_on(tmp_path, "data.decontaminate=4", "data.train.0.split=b"))
    samples, records = load_training(run_on(tmp_path, "data.decontaminate=off"))
    assert len(samples) == 2 and not records[0].dropped and not list(records[0].account(13))


def test_a_limit_counts_clean_samples_and_eval_limits_do_not_change_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [question(place) for place in range(12)])
    run = run_on(tmp_path, "data.train.0.limit=8", "eval.limit=1")
    samples, records = load_training(run)
    assert len(samples) == 8 and all(int(sample.id.split("q")[-1]) >= 12 for sample in samples)
    assert len(records[0].dropped["exact_question"]) == 12
    assert load_training(run_on(tmp_path, "data.train.0.limit=8"))[0] == samples
    assert len(load_evaluation(run)) == 1


def test_an_empty_training_set_names_the_filters(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [question(0), question(1), question(2, question=f"{LONG} too")])
    write_rows(tmp_path / "test.jsonl", [question(0), question(1), question(2, question=LONG)])
    with pytest.raises(UserError) as caught:
        load_training(run_on(tmp_path))
    assert caught.value.message.splitlines() == [
        "no training sample is left:",
        "  train/train: 3 rows, 2 dropped because the question is that of an evaluation sample, "
        "1 dropped because 13 words in a row are also in an evaluation sample",
        "    train/train/q0 and mine/test/q0: 'which of these is number 0 of the 1 things'",
        "    train/train/q1 and mine/test/q1: 'which of these is number 1 of the 2 things'",
        f"    train/train/q2 and mine/test/q2: '{LONG}'",
    ]
    assert caught.value.fix


def test_tasks_without_options_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [{"id": 1, "question": "6 x 12?", "answer": "72"}])
    for scoring in ("letter", "cloze"):
        with pytest.raises(
            UserError, match=f"eval.tasks: mine has free-text answers, which {scoring} scoring"
        ):
            load_evaluation(run_on(tmp_path, f"eval.scoring={scoring}"))
    with pytest.raises(UserError, match="gsm8k has free-text answers"):
        load_evaluation(run_on(tmp_path, "eval.tasks=[gsm8k]", "eval.data_root=."))


def test_questions_of_signs_alone_are_compared_as_they_are() -> None:
    rows = [
        {"id": str(place), "question": text, "answer": "x"}
        for place, text in enumerate(["+-?", "+-?", "**?"])
    ]
    first, same, other = map(asked, rows)
    assert list(Decontamination([first], NGRAM).overlaps([same, other])) == [0]
