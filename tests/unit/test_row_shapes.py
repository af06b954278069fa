"""Shapes of rows: each is read as the row of ours that says the same, what is no shape is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import question, run_on, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_files import KINDS, save

from roma_ds.config.sources import ColumnsConfig
from roma_ds.data import load_samples, load_training, run_data
from roma_ds.data.message import Message
from roma_ds.data.rows import How, read_rows
from roma_ds.errors import UserError


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


ASK, TELL = said("user", "What melts?"), said("assistant", "zinc")
CHAT = {"id": "1", "messages": (Message("user", "What melts?"),), "question": "What melts?", "answer": "zinc"}
SYSTEM = {**CHAT, "messages": (Message("system", "Be brief."), Message("user", "What melts?"))}
OPTIONS = {"id": "1", "question": "Which?", "choices": ["iron", "zinc", "tin"], "answer": 1}
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}]


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> list[dict[str, Any]]:
    return read_rows(write_rows(folder / "rows.jsonl", rows), how=How(**how))


def refusal(folder: Path, *rows: dict[str, Any], **how: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read(folder, *rows, **how)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASK, TELL]}, CHAT),
        ({"messages": [said("system", "Be brief."), ASK, TELL]}, SYSTEM),
        ({"messages": [ASK, TELL], "system": "Be brief."}, SYSTEM),
        ({"conversations": [turn("human", "What melts?"), turn("gpt", "zinc")]}, CHAT),
        ({"conversations": [turn("system", "Be brief."), turn("human", "What melts?"), turn("gpt", "zinc")]},
         SYSTEM),
        ({"conversation": [ASK, TELL], "system": "Be brief."}, SYSTEM),
        ({"messages": json.dumps([ASK, TELL])}, CHAT),
        ({"messages": [said("user", [part("What "), part("melts?")]), TELL]}, CHAT),
        ({"messages": [ASK, said("assistant", "tin", weight=0), said("assistant", "zinc", weight=1)]},
         {**CHAT, "messages": (Message("user", "What melts?"), Message("assistant", "tin", train=False))}),
        ({"messages": [ASK, TELL, said("user", "Thanks")]}, CHAT),
        ({"messages": [ASK, TELL, said("user", "More?"), said("assistant", "no", train=False)]}, CHAT),
        ({"messages": [ASK, said("assistant", None, tool_calls=CALL), said("tool", "hot", name="it"), TELL]},
         {**CHAT, "messages": (
             Message("user", "What melts?"),
             Message("assistant", "", extra=json.dumps({"tool_calls": CALL})),
             Message("tool", "hot", extra='{"name": "it"}'),
         )}),
        ({"conversations": [turn("human", "What melts?"),
                            turn("function_call", json.dumps(CALL[0]["function"])),
                            turn("observation", "hot"), turn("gpt", "zinc")]},
         {**CHAT, "messages": (
             Message("user", "What melts?"),
             Message("assistant", "", extra=json.dumps({"tool_calls": CALL})),
             Message("tool", "hot"),
         )}),
        ({"messages": [ASK, TELL], "tools": [{"name": "look"}]}, {**CHAT, "tools": '[{"name": "look"}]'}),
        ({"messages": [ASK, TELL], "tools": '[{"name":"look"}]'}, {**CHAT, "tools": '[{"name": "look"}]'}),
        ({"messages": [ASK, TELL], "tools": "[]"}, CHAT),
        ({"instruction": "What melts?", "input": "", "output": "zinc"},
         {"prompt": "What melts?", "answer": "zinc"}),
        ({"instruction": "Sum up.", "input": "A text.", "output": "A."},
         {"prompt": "Sum up.\n\nA text.", "answer": "A."}),
        ({"instruction": "Sum up.", "context": "A text.", "response": "A."},
         {"prompt": "Sum up.\n\nA text.", "answer": "A."}),
        ({"instruction": "What melts?", "system": "Be brief.", "output": "zinc"}, SYSTEM),
        ({"instruction": "What melts?", "output": "zinc", "history": [["Hi", "Ho"]]},
         {**CHAT, "messages": (
             Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "What melts?"),
         )}),
        ({"instruction": "Do.", "input": "it", "output": "Done.", "text": "Below: Do.\nit\nDone."},
         {"prompt": "Do.\n\nit", "answer": "Done."}),
        ({"prompt": "It is ", "completion": " blue."}, {"prompt": "It is ", "answer": "blue."}),
        ({"prompt": [ASK], "completion": [TELL]}, CHAT),
        ({"prompt": "What melts?", "completion": "zinc", "system": "Be brief."}, SYSTEM),
        ({"question": "Who?", "context": "Ann left.", "answers": {"text": ["Ann", "she"], "start": [0, 1]}},
         {"question": "Who?", "passage": "Ann left.", "answer": "Ann"}),
        ({"question": "Who?", "answers": ["Ann", "she"]},
         {"question": "Who?", "passage": None, "answer": "Ann"}),
        ({"question": "Which?", "A": "iron", "B": "zinc", "C": "tin", "D": "", "answer": "B"}, OPTIONS),
        ({"question": "Which?", "a": "iron", "b": "zinc", "c": "tin", "answer": "zinc"}, OPTIONS),
        ({"Question": "Which?", "Choices": ["iron", "zinc", "tin"], "Answer": 1}, OPTIONS),
        ({"question": "Is it?", "context": "Yes.", "answer": True},
         {"question": "Is it?", "passage": "Yes.", "choices": ["no", "yes"], "answer": 1}),
    ],
)  # fmt: skip
def test_a_shape_is_read(tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(tmp_path, {"id": "1", **row}) == [{"id": "1", **expected}]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "a conversation must be a list of messages, got []"),
        ({"messages": "hello"}, 'a conversation must be a list of messages, got "hello"'),
        ({"messages": ["hello"]}, "message 1 must be an object with role and content"),
        ({"messages": [said("narrator", "x"), TELL]}, "message 1 must name who speaks"),
        ({"messages": [ASK, said("assistant", 3)]}, "content must be a text or a list of parts, got 3"),
        (
            {"messages": [said("user", [{"type": "image_url", "image_url": {}}]), TELL]},
            "message 1 has a part of type 'image_url': text is read, pictures, sounds and films are not",
        ),
        ({"messages": [ASK, said("assistant", "x", weight=0.5)]}, "message 2: train and weight are true"),
        ({"messages": [ASK]}, "no message of an assistant"),
        ({"messages": [TELL]}, "no message of a user"),
        ({"messages": [TELL, ASK]}, "stands behind one of the user"),
        ({"messages": [ASK, said("assistant", "x", train=False)]}, "of the assistant is to be trained on"),
        ({"messages": [ASK, said("assistant", "", tool_calls=CALL)]}, "has a text and makes no call"),
        ({"messages": [ASK, TELL], "conversations": [ASK, TELL]}, "and conversations are both given"),
        ({"messages": [said("system", "A"), ASK, TELL], "system": "B"}, "are two system texts"),
        ({"messages": [ASK, TELL], "tools": "look"}, "tools must be a list or its JSON text"),
        ({"conversations": [turn("human", "x"), turn("function_call", "look()")]}, "must be a JSON object"),
        ({"instruction": "x", "output": ""}, "output must be a text that is not blank"),
        ({"instruction": "x", "output": "y", "response": "z"}, "output and response are both given"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "history must be a list of pairs of texts"),
        ({"instruction": "x", "input": 3, "output": "y"}, "input must be a text, got 3"),
        ({"prompt": "x", "completion": 3}, "completion must be a text that is not blank, got 3"),
        ({"question": "x", "answers": {"text": []}}, "answers must be texts, at least one"),
        ({"question": "x", "passage": "a", "context": "b", "answer": "c"}, "and context are both given"),
        ({"question": "x", "A": "a", "B": "", "C": "c", "answer": "A"}, "number 2 is not"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    error = refusal(tmp_path, row)
    assert "rows.jsonl:1: " in error.message and says in error.message


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "x", "chosen": "a", "rejected": "b"},
            "which answers are preferred (chosen and rejected)",
        ),
        (
            {"chosen": [ASK, TELL], "rejected": [ASK, TELL]},
            "which answers are preferred (chosen and rejected)",
        ),
        ({"prompt": "x", "completion": "a", "label": False}, "(prompt, completion and label)"),
        ({"text": "All in one."}, "the rows have no shape that is known; their keys are 'text'"),
        ({"query": "x", "response": "y"}, "no shape that is known; their keys are 'query', 'response'"),
        ({"question": "x", "response": "y"}, "no shape that is known; their keys are 'question', 'response'"),
    ],
)
def test_other_shapes_are_refused_by_name(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    error = refusal(tmp_path, row, row)
    assert says in error.message
    if "known" in says:
        assert all(words in str(error.fix) for words in ("columns:", "messages", "instruction", "choices"))


def test_columns_say_what_is_called_otherwise(tmp_path: Path) -> None:
    mine = {"nr": 7, "frage": "Which?", "x": "iron", "y": "zinc", "key": "B", "story": "Once.", "note": "n"}
    columns = ColumnsConfig(id="nr", question="frage", choices=("x", "y"), answer="key", passage="story")
    expected = {"id": "7", "question": "Which?", "choices": ["iron", "zinc"], "answer": 1, "passage": "Once."}
    assert read(tmp_path, mine, columns=columns) == [{**expected, "note": "n"}]
    error = refusal(tmp_path, mine, columns=ColumnsConfig(question="frag", answer="key"))
    assert (
        "columns.question names 'frag', which none of the first rows has; did you mean 'frage'?"
        in error.message
    )
    chats = {
        "dialog": [{"who": "user", "what": "What melts?"}, {"who": "assistant", "what": "zinc"}],
        "id": "1",
    }
    assert read(tmp_path, chats, columns=ColumnsConfig(messages="dialog", role="who", content="what")) == [
        CHAT
    ]
    asked = {"id": "1", "q": "What melts?", "a": "zinc", "sys": "Be brief."}
    assert read(tmp_path, asked, columns=ColumnsConfig(question="q", answer="a", system="sys")) == [SYSTEM]


def test_columns_lift_the_refusal_of_keys_that_hold_content(tmp_path: Path) -> None:
    row = {**OPTIONS, "story": "Once upon a time."}
    assert "the key 'story' is not read" in refusal(tmp_path, row).message
    assert read(tmp_path, row, columns=ColumnsConfig(passage="story"))[0]["passage"] == "Once upon a time."
    assert read(tmp_path, row, columns=ColumnsConfig(ignore=("story",))) == [OPTIONS]
    chosen = {"id": "1", "prompt": "Say.", "chosen": "a", "rejected": "b"}
    [taken] = read(tmp_path, chosen, columns=ColumnsConfig(answer="chosen"))
    assert (taken["prompt"], taken["answer"]) == ("Say.", "a")


def test_columns_stand_in_the_config(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [])
    (tmp_path / "rows.csv").write_text("Frage,Antwort\nWhat melts?,zinc\nWhat rusts?,iron\n")
    given = "data.train=[{path: rows.csv, columns: {question: Frage, answer: Antwort}}]"
    samples, [record] = load_training(run_on(tmp_path, given))
    assert [(sample.question, sample.target) for sample in samples] == [
        ("What melts?", " zinc"), ("What rusts?", " iron"),
    ]  # fmt: skip
    assert record.files[0].shape == "question (question, answer)"
    said = f"{tmp_path / 'rows.csv'}: CSV, read as question (question, answer)"
    assert record.notes[0] == said


@pytest.mark.parametrize(
    ("answers", "options", "expected"),
    [
        (["0", "3", "1"], ["1", "2", "3", "4"], [0, 3, 1]),
        (["1", "2", "4"], ["1", "2", "3", "4"], [0, 1, 3]),
        (["A", "C", "B"], ["B", "A", "C", "D"], [0, 2, 1]),
        (["C", "X", "A"], ["B", "A", "C", "X"], [2, 3, 1]),
    ],
)
def test_answers_that_could_mean_two_options_are_read_as_the_others_are(
    tmp_path: Path, answers: list[str], options: list[str], expected: list[int]
) -> None:
    rows = [{"id": place, "question": f"q{place}", "choices": options, "answer": answer}
            for place, answer in enumerate(answers)]  # fmt: skip
    if answers[0] == "A":
        # All could be letters and texts: nothing tells.
        assert "neither a letter" in refusal(tmp_path, *rows).message
    else:
        assert [row["answer"] for row in read(tmp_path, *rows)] == expected


def test_a_file_that_counts_options_from_one_is_told(tmp_path: Path) -> None:
    rows = [question(place, answer=1 + place % 3) for place in range(60)]
    samples, [record] = load_training(
        run_on(tmp_path, f"data.train=[{{path: {write_rows(tmp_path / 'r.jsonl', rows)}}}]")
    )
    assert len(samples) == 60 and "answers count options from 0 here" in record.notes[0]


def test_the_shape_of_a_file_holds_for_all_its_rows(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"messages": [ASK, TELL]}, {"instruction": "x", "output": "y"})
    assert "rows.jsonl:2: no messages" in error.message


def test_shape_and_example_are_in_the_manifest(tmp_path: Path) -> None:
    long = "w " * 500
    write_rows(tmp_path / "train.jsonl", [{"instruction": "Say.", "input": long, "output": "w"}])
    said: list[str] = []
    manifest = run_data(run_on(tmp_path), tmp_path / "out", said.append)
    [file] = manifest["training"]["datasets"][0]["files"]
    assert (file["kind"], file["shape"], file["rows"]) == (
        "JSON lines",
        "instruction (instruction, output)",
        1,
    )
    assert file["example"]["row"]["instruction"] == "Say." and len(file["example"]["row"]["input"]) == 200
    assert file["example"]["read"]["answer"] == "w"
    assert said[0].endswith("train.jsonl: JSON lines, read as instruction (instruction, output)")


def test_malformed_rows_are_left_out_counted_and_named(tmp_path: Path) -> None:
    rows: list[Any] = [question(place) for place in range(6)]
    rows[1] = question(1, choices=["a", " "])
    rows[3] = question(3, id="q0")
    path = write_rows(tmp_path / "train.jsonl", rows)
    path.write_text(path.read_text() + "no JSON\n")
    with pytest.raises(
        UserError, match=r"train\.jsonl:2: .*\n.*train\.jsonl:4: .*\n.*train\.jsonl:7: "
    ) as caught:
        load_training(run_on(tmp_path))
    assert "data.on_bad_row=skip" in str(caught.value.fix)
    run, told = run_on(tmp_path, "data.on_bad_row=skip"), []
    manifest = run_data(run, tmp_path / "out", told.append)
    [entry] = manifest["training"]["datasets"]
    assert (entry["rows"], entry["used"], entry["bad_rows"]["count"]) == (4, 4, 3)
    assert [line.split(": ")[0] for line in entry["bad_rows"]["rows"]] == [
        f"{path}:{line}" for line in (2, 4, 7)
    ]
    assert told[0] == "train/train: 3 malformed rows left out" and f"{path}:2" in told[1]
    path.write_text("no JSON\n" * 3)
    with pytest.raises(UserError, match=r"train\.jsonl:1: not valid JSON"):
        load_training(run)


def test_evaluation_rows_are_left_out_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [question(1000), {"id": "bad"}])
    manifest = run_data(run_on(tmp_path, "data.on_bad_row=skip"), tmp_path / "out")
    assert manifest["evaluation"]["datasets"][0]["bad_rows"]["count"] == 1


THREE = [ASK, TELL, said("user", "And what rusts?"), said("assistant", "iron"), said("user", "Why?"),
         said("assistant", "air", train=False), said("user", "So?"), said("assistant", "water")]  # fmt: skip


def test_a_conversation_becomes_a_sample_of_its_turns(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"id": "c", "messages": [said("system", "Be brief."), *THREE[:4]]}])
    run = run_on(tmp_path)
    [sample] = load_training(run)[0]
    assert sample.prompt == (
        "System: Be brief.\nUser: What melts?\nAssistant: zinc\nUser: And what rusts?\nAssistant:"
    )
    assert (sample.target, sample.question, sample.options, sample.answer) == (
        " iron",
        "And what rusts?",
        (),
        -1,
    )
    assert sample.messages == (
        Message("system", "Be brief."), Message("user", "What melts?"), Message("assistant", "zinc"),
        Message("user", "And what rusts?"),
    )  # fmt: skip
    told: list[str] = []
    run_data(run, tmp_path / "out", told.append)
    assert load_samples(tmp_path / "out" / "data" / "samples.parquet") == [sample]
    assert sum("data.template=chat" in line for line in told) == 1


def test_every_turn_is_an_answer_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"id": "c", "messages": THREE}, {"id": "d", "messages": [ASK, TELL]}]
    write_rows(tmp_path / "train.jsonl", rows)
    samples, [record] = load_training(run_on(tmp_path, "data.turns=all"))
    assert [(sample.id, sample.question, sample.target) for sample in samples] == [
        ("train/train/c/turn1", "What melts?", " zinc"),
        ("train/train/c/turn2", "And what rusts?", " iron"),
        ("train/train/c/turn3", "So?", " water"),
        ("train/train/d", "What melts?", " zinc"),
    ]
    assert [len(sample.messages or ()) for sample in samples] == [1, 3, 7, 1]
    assert (record.rows, record.used, record.over_limit) == (2, 2, 0)
    limited, [record] = load_training(run_on(tmp_path, "data.turns=all", "data.train.0.limit=1"))
    assert len(limited) in (1, 3) and (record.used, record.over_limit) == (1, 1)


def test_conversations_that_give_an_evaluated_question_away_are_dropped(tmp_path: Path) -> None:
    asked = "which of these seven metals melts first when it is heated in lab nine"
    write_rows(tmp_path / "test.jsonl", [question(0, question=asked)])
    talks = [
        [said("user", f"{asked.capitalize()}?"), TELL],
        [ASK, TELL, said("user", f"Now tell me: {asked}? One word."), said("assistant", "tin")],
        [said("user", f"First this: {asked}."), TELL, ASK, TELL],
        [said("user", "What is it?"), said("assistant", "no question"), said("user", "Why?"), TELL],
    ]
    # A question that many rows of a file hold would give nothing away.
    others = [[said("user", f"What is number {place}?"), TELL] for place in range(60)]
    rows = [{"id": place, "messages": talk} for place, talk in enumerate([*talks, *others])]
    write_rows(tmp_path / "train.jsonl", rows)
    for turns in ("last", "all"):
        samples, [record] = load_training(run_on(tmp_path, f"data.turns={turns}"))
        assert {sample.id.split("/")[2] for sample in samples} == {str(place) for place in range(3, 64)}
        dropped = {identity.split("/")[2] for ids in record.dropped.values() for identity in ids}
        assert dropped == {"0", "1", "2"}


def test_plain_and_chat_rows_of_one_dataset(tmp_path: Path) -> None:
    """A file with turns behind one without, and one without behind that."""
    for name, row in (("a", OPTIONS), ("b", {"messages": [ASK, TELL]}), ("c", {**OPTIONS, "id": "2"})):
        write_rows(tmp_path / "in" / f"{name}.jsonl", [row])
    run = run_on(tmp_path, "data.train=[{path: in}]")
    manifest = run_data(run, tmp_path / "out")
    assert [file["rows"] for file in manifest["training"]["datasets"][0]["files"]] == [1, 1, 1]
    samples = load_samples(tmp_path / "out" / "data" / "samples.parquet")
    assert [sample.messages is None for sample in samples] == [True, False, True]
    assert samples == load_training(run)[0]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8).map(
    "w{}".format
)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    start = [said("system", draw(words))] if draw(st.booleans()) else []
    turns = [turn for _ in range(draw(st.integers(1, 3)))
             for turn in (said("user", draw(words)), said("assistant", draw(words)))]  # fmt: skip
    return {"messages": start + turns}


@given(rows=st.lists(conversations(), min_size=1, max_size=4), name=st.sampled_from(sorted(KINDS)))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_conversations_come_back_from_any_kind(
    tmp_path: Path, rows: list[dict[str, Any]], name: str
) -> None:
    named = [{"id": str(place), **row} for place, row in enumerate(rows)]
    ours = [
        {
            "id": row["id"],
            "messages": tuple(Message(**turn) for turn in row["messages"][:-1]),
            "question": row["messages"][-2]["content"],
            "answer": row["messages"][-1]["content"],
        }
        for row in named
    ]
    assert read_rows(save(tmp_path, name, named)) == ours
    spoken = [
        {"id": row["id"], "conversations": [turn(one["role"], one["content"]) for one in row["messages"]]}
        for row in named
    ]
    assert read_rows(save(tmp_path, name, spoken)) == ours
