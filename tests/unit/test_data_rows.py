"""Rows: what is accepted, and that malformed ones are named with file and line."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path
from typing import Any

import pytest
from data_files import run_on, write_rows
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.data import run_data
from roma_ds.data.rows import check_rows, read_rows, row_problems
from roma_ds.data.shapes.options import read_options as accepted
from roma_ds.data.templates import render
from roma_ds.errors import UserError

GOOD = {"id": "1", "question": "Is it?", "choices": ["no", "yes"], "answer": 1}

texts = st.text(min_size=1, max_size=20).filter(str.strip)
identities = st.text(min_size=1, max_size=8) | st.integers()


@st.composite
def good_rows(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = {"id": draw(identities)}
    row[draw(st.sampled_from(["question", "prompt"]))] = draw(texts)
    if draw(st.booleans()):
        row["choices"] = draw(st.lists(texts, min_size=2, max_size=26))
        row["answer"] = draw(st.integers(0, len(row["choices"]) - 1))
    else:
        row["answer"] = draw(texts)
    row |= draw(
        st.fixed_dictionaries(
            {}, optional={"passage": texts | st.none(), "subject": texts, "extra": st.integers()}
        )
    )
    return row


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def failure(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(path)
    assert caught.value.exit_code == 2 and caught.value.fix
    return caught.value.message


def test_plain_and_gzipped_files_read_alike(tmp_path: Path) -> None:
    text = json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "id": 2}) + "\n"
    (tmp_path / "a.jsonl").write_text("\ufeff" + text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(text.encode()))
    expected = [GOOD, {**GOOD, "id": "2"}]
    assert all(read_rows(tmp_path / name) == expected for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "answer": 2}, "answer 2 is out of range: with 2 choices it is 0 to 1"),
        ({**GOOD, "answer": -1}, "answer -1 is out of range: with 2 choices it is 0 to 1"),
        (
            {**GOOD, "answer": "C"},
            'answer "C" is neither a letter from A to B nor the text of one choice alone',
        ),
        ({**GOOD, "answer": "5"}, "answer 5 is out of range: with 2 choices it is 0 to 1"),
        ({**GOOD, "choices": ["B", "A"], "answer": "B"}, 'answer "B" is neither a letter'),
        ({**GOOD, "choices": ["x", "x"], "answer": "x"}, 'answer "x" is neither a letter'),
        ({**GOOD, "choices": {"text": ["x"], "label": ["A", "B"]}}, "choices must be a list of texts"),
        (
            {**GOOD, "choices": ["a", "b"], "answer": True},
            "answer must be the index of the right choice, 0 to 1, got true",
        ),
        ({**GOOD, "answer": None}, "answer must be the index of the right choice, 0 to 1, got null"),
        ({**GOOD, "answer": 1.5}, "answer must be the index of the right choice, 0 to 1, got 1.5"),
        ({**GOOD, "answer": 2.0}, "answer 2 is out of range"),
        ({**GOOD, "choices": ["only"]}, "there must be 2 to 26 choices, got 1"),
        ({**GOOD, "choices": ["x"] * 27}, "there must be 2 to 26 choices, got 27"),
        ({**GOOD, "choices": "no yes"}, "choices must be a list of texts that are not blank"),
        ({**GOOD, "choices": ["a", ""]}, "choices must be a list of texts that are not blank"),
        ({**GOOD, "choices": ["a", 2]}, "choices must be a list of texts that are not blank"),
        ({**GOOD, "question": " "}, 'question must be a text that is not blank, got " "'),
        ({**GOOD, "prompt": 3}, "prompt must be a text that is not blank, got 3"),
        ({**GOOD, "passage": 3}, "passage must be a text, got 3"),
        ({**GOOD, "id": None}, "id must be a text or a whole number, got null"),
        ({**GOOD, "id": 1.5}, "id must be a text or a whole number, got 1.5"),
        ({**GOOD, "question": "half \ud83d"}, '"question" holds \\ud83d, half of a surrogate pair'),
        ({**GOOD, "choices": ["half \udc00", "b"]}, '"choices" holds \\udc00, half of a surrogate pair'),
        ({**GOOD, "choices": ["half \udc00", 1]}, "choices must be a list of texts that are not blank"),
        ({**GOOD, "\ud83d": 1}, '"\\ud83d" holds \\ud83d, half of a surrogate pair'),
        ({**GOOD, "id": "\ud83d"}, '"id" holds \\ud83d'),
        ({**GOOD, "answerKey": "A"}, "answer names option 1 and answerKey option 0, from 0"),
        (
            {"id": 1, "question": "q", "choices": {"text": ["a", "b"], "label": ["1"]}, "answerKey": "1"},
            "choices must be a list of texts that are not blank",
        ),
        ({"id": 1, "answer": "a"}, "neither question nor prompt"),
        ({"id": 1, "question": "q"}, "no answer"),
        ({"id": 1, "question": "q", "answer": 72}, "without choices the answer must be a text, got 72"),
        ({"id": 1, "question": "q", "answer": " "}, "without choices the answer must be a text"),
        (["no", "object"], 'expected a JSON object, got ["no", "object"]'),
        ("text", 'expected a JSON object, got "text"'),
        (None, "expected a JSON object, got null"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOOD, "id": "first"}) + "\n\n" + json.dumps(row) + "\n")
    assert f"{path}:3: {message}" in failure(path)


@pytest.mark.parametrize(
    "form",
    [
        {"answer": "B"},
        {"answer": " b "},
        {"answer": "(B)"},
        {"answer": "yes"},
        {"answer": 1.0},
        {"answer": "1"},
        {"answer": True},
        {"answer": "true"},
        {"choices": ["False", "True"], "answer": True},
        {"choices": '["no", "yes"]', "answer": 1},
        {"choices": "['no', 'yes']", "answer": "yes"},
        {"choices": {"A": "no", "B": "yes"}, "answer": "B"},
        {"choices": {"text": ["no", "yes"], "label": [1, 2]}, "answer": 2},
        {"choices": None, "A": "no", "B": "yes", "C": None, "answer": "B"},
        {"answer": "yes", "answerKey": "B"},
        {"choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answerKey": "2"},
        {"choices": {"text": ["no", "yes"], "label": ["A", "B"]}, "answerKey": "B"},
        {"choices": {"text": ["no", "yes"], "label": [0, 1]}, "answer": 1},
        {"choices": [{"text": "no", "label": "A"}, {"text": "yes", "label": "B"}], "answerKey": "B"},
        {"choices": ["no", "yes"], "answerKey": "B"},
    ],
)
def test_other_forms_of_an_answer_are_taken(tmp_path: Path, form: dict[str, Any]) -> None:
    row = {key: value for key, value in GOOD.items() if key != "answer"} | form
    [read] = read_rows(write_rows(tmp_path / "rows.jsonl", [row]))
    assert (len(read["choices"]), read["answer"]) == (2, 1)


def test_a_text_in_lower_case_is_no_letter_where_an_option_says_it() -> None:
    assert accepted({"choices": ["0", " a"], "answer": "a"})["answer"] == 1


@given(st.lists(texts, min_size=2, max_size=26, unique_by=str.strip), st.data())
def test_answers_by_text_and_by_letter_mean_what_they_say(choices: list[str], data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(choices) - 1))
    letter = string.ascii_uppercase[right]
    row = {"id": "1", "question": "q", "choices": choices}
    by_text = accepted({**row, "answer": choices[right]})["answer"]
    by_letter = accepted({**row, "answer": letter})["answer"]
    of_two_meanings = choices[right].strip() in string.ascii_uppercase or choices[right].strip().isdigit()
    assert by_text == right or of_two_meanings
    assert by_letter == right or letter in [choice.strip() for choice in choices]


def test_rows_without_id_get_one_of_file_and_line(tmp_path: Path) -> None:
    notes: list[str] = []
    rows = [{"question": "q", "answer": "a"}, {"id": 7, "question": "r", "answer": "a"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert [row["id"] for row in read_rows(path, notes.append)] == ["rows.jsonl:1", "7"]
    assert notes == [f"{path}: 1 rows without id; their ids are made of the file's name and their line"]


@pytest.mark.parametrize(
    "key",
    ["Context", "input", "system", "system_prompt", "instruction", "background", "pasage",
     "Passage", "options", "option_a", "inputText", "history", "source_document", "titleText", "abstract"],
)  # fmt: skip
def test_keys_that_hold_what_would_be_lost_are_refused(tmp_path: Path, key: str) -> None:
    rows = [{**GOOD, "id": place, key: f"Lab {place} is warm."} for place in range(12)]
    found = failure(write_rows(tmp_path / "rows.jsonl", rows))
    assert found.count(repr(key)) == 1
    assert f"rows.jsonl:1: the key {key!r} is not read" in found and "12 rows hold text under it" in found
    listed = [{**row, key: [{"said": "Lab."}]} for row in rows]
    assert repr(key) in failure(write_rows(tmp_path / "rows.jsonl", listed))


def test_other_keys_are_named_once(tmp_path: Path) -> None:
    """Nothing is lost by a note, an empty text, or a text that the question or prompt repeats."""
    more = {"source": "a book", "support": "why", "context_id": "c7", "input": "", "system": None, "hint": 3}
    more |= {"document_source": "a book", "num_sentences": "three"}
    rows = [{**GOOD, "id": place, **more} for place in range(12)]
    rows.append({"id": 12, "prompt": "Read: Once. Is it?", "story": "Once.", "answer": "yes"})
    notes: list[str] = []
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert len(read_rows(path, notes.append)) == 13
    [note] = notes
    assert note.startswith(f"{path}: keys that are not read: 'source' (12 rows), 'support' (12 rows)")
    assert "'story' (1 rows)" in note


def test_what_is_said_of_files_is_in_the_manifest(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{**GOOD, "source": "a book"}])
    said: list[str] = []
    manifest = run_data(run_on(tmp_path), tmp_path / "out", said.append)
    notes = [f"{tmp_path / 'train.jsonl'}: keys that are not read: 'source' (1 rows)"]
    assert manifest["training"]["datasets"][0]["notes"] == said == notes


def test_lines_that_are_no_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"id": 1,\n' + "9" * 5000 + "\n")
    found = failure(path)
    assert (
        f"{path}:2: not valid JSON: Expecting property name enclosed in double quotes at column 10" in found
    )
    assert f"{path}:3: not valid JSON" in found


def test_a_key_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD)[:-1] + ', "answer": 1}\n')
    assert f"{path}:1: not valid JSON: the key 'answer' is given twice" in failure(path)


def test_the_first_ten_problems_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("x\n" * 13)
    found = failure(path).splitlines()
    assert len(found) == 11
    assert found[9].startswith(f"{path}:10:")
    assert found[10] == "and 3 more"


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "id": identity}) + "\n" for identity in (1, 2, "1")))
    assert failure(path) == f"{path}:3: the id '1' is already taken by {path}:1"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert f"the data file {tmp_path / 'absent.jsonl'} does not exist" in failure(tmp_path / "absent.jsonl")
    assert "cannot be read" in failure(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "empty.jsonl holds no rows" in failure(tmp_path / "empty.jsonl")
    whole = gzip.compress(json.dumps(GOOD).encode() * 50)
    for name, content in {"cut.gz": whole[:-9], "bad.gz": whole[:20] + b"\xff" * 20 + whole[40:]}.items():
        (tmp_path / name).write_bytes(content)
        assert "damaged gzip data" in failure(tmp_path / name)
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xe9\n")
    assert "latin.jsonl:2: not UTF-8 text" in failure(tmp_path / "latin.jsonl")


@given(st.lists(good_rows(), max_size=5, unique_by=lambda row: str(row["id"])))
def test_good_rows_pass_and_render(rows: list[dict[str, Any]]) -> None:
    checked = check_rows([(str(place), row) for place, row in enumerate(rows)], "fix")
    assert checked == [{**row, "id": str(row["id"])} for row in rows]
    for row in checked:
        for form in ("letter", "text"):
            sample = render(row, form, "task", "train")
            assert sample.target.startswith(" ")
            assert sample.prompt.strip() and sample.question.strip()
            assert all(option.startswith(" ") for option in sample.options)
            assert len(sample.options) == len(sample.choices) == len(row.get("choices", []))
            if sample.options:
                assert sample.options[sample.answer] == sample.target


@given(anything | good_rows().flatmap(lambda row: st.sampled_from([*row]).map(lambda key: {**row, key: {}})))
def test_any_other_row_has_a_problem(row: Any) -> None:
    optional = {"extra"}
    spoiled = {key for key, value in row.items() if value == {}} if isinstance(row, dict) else set()
    assert list(row_problems(row)) or spoiled <= optional
