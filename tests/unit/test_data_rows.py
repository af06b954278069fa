"""Rows: what is accepted, and that malformed ones are named with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.data.rows import check_rows, read_rows, row_problems
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
        ({**GOOD, "answer": "B"}, 'answer must be the index of the right choice, 0 to 1, got "B"'),
        ({**GOOD, "answer": True}, "answer must be the index of the right choice, 0 to 1, got true"),
        ({**GOOD, "answer": None}, "answer must be the index of the right choice, 0 to 1, got null"),
        ({**GOOD, "answer": 1.0}, "answer must be the index of the right choice, 0 to 1, got 1.0"),
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
        ({"question": "q", "answer": "a"}, "no id"),
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


def test_lines_that_are_no_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"id": 1,\n' + "9" * 5000 + "\n")
    found = failure(path)
    assert (
        f"{path}:2: not valid JSON: Expecting property name enclosed in double quotes at column 10" in found
    )
    assert f"{path}:3: not valid JSON" in found


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
