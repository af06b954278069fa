"""Columns of unknown names: taken for what their names say beyond doubt, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import question, write_rows
from hypothesis import given
from hypothesis import strategies as st

from roma_ds.config import outline_text, preset_text
from roma_ds.config.sources import ColumnsConfig
from roma_ds.config.yaml_text import commented, comments_of, parse
from roma_ds.data.rows import How, read_rows
from roma_ds.data.shapes.detection import CONVERSATIONS, SHAPES, UnknownShape
from roma_ds.data.shapes.first_look import FirstLook, held_out_split, look_at
from roma_ds.data.shapes.guess import option_group
from roma_ds.data.shapes.meaning import MEANINGS
from roma_ds.errors import UserError


def looked(folder: Path, *rows: dict[str, Any], columns: ColumnsConfig | None = None) -> FirstLook:
    path = write_rows(folder / "rows.jsonl", rows)
    return look_at(str(path), "train", columns or ColumnsConfig(), False)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"query": "Who?", "response": "Ann"}, {"question": "query", "answer": "response"}),
        ({"Problem": "1+1?", "Correct Answer": "2"}, {"question": "Problem", "answer": "Correct Answer"}),
        ({"query": "Who?", "reply": "Ann", "article": "Ann left."},
         {"question": "query", "answer": "reply", "passage": "article"}),
        ({"question": "Which?", "option_a": "iron", "option_b": "tin", "answer": "B"},
         {"choices": ("option_a", "option_b")}),
        ({"question": "Which?", "optionA": "iron", "optionB": "tin", "correctOption": "A"},
         {"choices": ("optionA", "optionB"), "answer": "correctOption"}),
        ({"goal": "Melt it", "sol1": "heat", "sol2": "cool", "label": "A"},
         {"question": "goal", "choices": ("sol1", "sol2"), "answer": "label"}),
        ({"stem": "Which?", "options": ["iron", "tin"], "gold": 1},
         {"question": "stem", "choices": "options", "answer": "gold"}),
        ({"chat": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": "x"},
         {"messages": "chat"}),
        (question(1), {}),
        ({"instruction": "Do.", "output": "Done."}, {}),
    ],
)  # fmt: skip
def test_names_that_say_what_they_are(tmp_path: Path, row: dict[str, Any], columns: dict[str, Any]) -> None:
    found = looked(tmp_path, row)
    assert found.columns == ColumnsConfig(**columns)
    [read] = read_rows(tmp_path / "rows.jsonl", how=How(found.columns))
    assert read["answer"] not in (None, "")


@pytest.mark.parametrize(
    "row",
    [
        {"first": "a", "second": "b"},
        {"query": "a", "problem": "b", "answer": "c"},
        {"query": "a", "response": "b", "target": "c"},
        {"goal": "Melt it", "sol1": "heat", "sol2": "cool"},
        {"text": "a"},
    ],
)
def test_names_that_do_not_say_it_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UnknownShape, match="cannot be told; they are") as caught:
        looked(tmp_path, row)
    assert repr(next(iter(row))) in caught.value.message and "data.train.0.columns" in str(caught.value.fix)


def test_what_is_given_stays(tmp_path: Path) -> None:
    given = ColumnsConfig(question="problem")
    found = looked(tmp_path, {"query": "a", "problem": "b", "reply": "c"}, columns=given)
    assert found.columns == ColumnsConfig(question="problem", answer="reply")
    given = ColumnsConfig(question="first", answer="second")
    assert looked(tmp_path, {"first": "a", "second": "b"}, columns=given).columns == given


def test_options_counted_from_one_are_not_guessed(tmp_path: Path) -> None:
    row = {"query": "Which?", "option1": "iron", "option2": "tin", "answer": "1"}
    with pytest.raises(UserError, match="are counted from 0"):
        looked(tmp_path, row)
    assert looked(tmp_path, {**row, "answer": "tin"}).columns.choices == ("option1", "option2")


def test_rows_to_prefer_between_and_empty_files_stay_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chosen and rejected"):
        looked(tmp_path, {"query": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(UserError, match="holds no rows"):
        looked(tmp_path)


def test_what_columns_are_taken_for(tmp_path: Path) -> None:
    found = looked(
        tmp_path, {"ID": 1, "Question": "Which?", "A": "iron", "B": "tin", "answer": "B", "from": "x"}
    )
    options = "the options, one column each"
    assert found.meanings == {
        "ID": "the id", "Question": "the question", "A": options, "B": options, "answer": "the answer",
        "from": "not read",
    }  # fmt: skip
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = looked(tmp_path, {"messages": turns, "system": "s"})
    assert found.conversations and found.meanings["system"] == "the text of a system turn"
    assert found.meanings["messages"].startswith("the turns")
    found = looked(tmp_path, {"instruction": "a", "context": "b", "response": "c"})
    assert list(found.meanings.values()) == ["the prompt", "put behind the instruction", "the answer"]


def test_every_key_of_a_shape_has_a_meaning() -> None:
    for shape in SHAPES:
        silent = {"id", "title", "phrasing", *CONVERSATIONS}
        assert shape.keys - silent <= set(MEANINGS[shape.name]), shape.name
        assert set(MEANINGS[shape.name]) <= shape.keys | {"system"}, shape.name


@given(
    st.sampled_from(("option_", "Choice", "opt ")), st.integers(2, 5), st.sampled_from("aA01"), st.randoms()
)
def test_groups_of_options_are_whole_and_in_order(stem: str, count: int, first: str, rng: Any) -> None:
    names = [f"{stem}{chr(ord(first) + place)}" for place in range(count)]
    shuffled = rng.sample(names, count)
    assert option_group([*shuffled, "question"]) == tuple(names)
    rest = names[1:] if first == "0" and count > 2 else []
    assert option_group(names[1:]) == tuple(rest)
    assert option_group([*names, "answer_a", "answer_b"]) == ()


def test_a_folder_may_hold_questions_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "train-0.jsonl", [question(1)])
    assert held_out_split(str(tmp_path / "in"), "train") is None
    write_rows(tmp_path / "in" / "validation.jsonl", [question(2)])
    assert held_out_split(str(tmp_path / "in"), "train") == "validation"
    write_rows(tmp_path / "in" / "test.jsonl", [question(3)])
    assert held_out_split(str(tmp_path / "in"), "train") == "test"
    write_rows(tmp_path / "flat" / "a.jsonl", [question(1)])
    assert held_out_split(str(tmp_path / "flat"), "train") is None


def flat(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    return {key: value for name in values for key, value in flat(values[name], f"{path}.{name}").items()}


def test_the_outline_has_the_values_of_the_preset() -> None:
    outline, preset = flat(parse(outline_text("own_data"))), flat(parse(preset_text("olmoe")))
    own = {".model.path", ".data.train", ".eval.tasks", ".controls", ".output_dir"}
    assert len(outline) > 20 and own < set(outline)
    assert {key: value for key, value in outline.items() if preset[key] != value}.keys() <= own
    comments = comments_of(outline_text("own_data"))
    uncommented = {key.removeprefix(".") for key in outline} - set(comments)
    assert uncommented == {"train.epochs", "train.lr", "train.seed", "deepspeed", "output_dir"}


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.floats(0.001, 1e6))
values_of_a_section = st.dictionaries(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
    st.one_of(
        scalars,
        st.lists(scalars, max_size=3),
        st.lists(
            st.dictionaries(st.sampled_from(("path", "name")), scalars, min_size=1), min_size=1, max_size=3
        ),
    ),
    min_size=1,
    max_size=5,
)


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.one_of(values_of_a_section, scalars))
)
def test_commented_values_are_read_back(values: dict[str, Any]) -> None:
    paths = [key.removeprefix(".") for key in flat(values)] + list(values)
    comments = {path: f"about # {path}: x" for path in paths}
    text = commented(values, comments, {path: ["one", "two: # three"] for path in paths})
    assert parse(text) == (values or None)


def test_comments_are_found_by_key() -> None:
    text = '# top: no\na: 1   # one\nb:\n  c: [x, y]  # two # three\n  d: x#y\ne: "#"  # four\n'
    assert comments_of(text) == {"a": "one", "b.c": "two # three", "e": "four"}
