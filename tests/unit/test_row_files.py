"""Files of every kind give the rows that our own JSON lines give, and texts stay what they are."""

from __future__ import annotations

import json
import string
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import question, run_on, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_files import KINDS, save, separated, table

from roma_ds.data import load_evaluation, load_training, run_data
from roma_ds.data.files import open_rows
from roma_ds.data.rows import read_rows
from roma_ds.data.sources import training_sources
from roma_ds.errors import UserError

TEXTS = [
    "2024-01-31",
    "007",
    "null",
    "true",
    "1e3",
    "NaN",
    "-0",
    "",
    '"quoted", yes',
    "two\nlines",
    "é\u2028漢",
]
ROWS = [
    question(
        place,
        question=f'Which is "{text}"\t, number {place}?',
        choices=[f"{text} a", "b", text + "c"],
        answer=1,
    )
    for place, text in enumerate(TEXTS)
]
FREE = [
    {"id": f"00{place}", "prompt": f" say {text}", "answer": text} for place, text in enumerate(TEXTS) if text
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert read_rows(save(tmp_path, name, ROWS)) == ROWS
    assert read_rows(save(tmp_path, name, FREE)) == FREE
    assert open_rows(tmp_path / name).kind == KINDS[name][0]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12).map(
    lambda text: f"{text}x"
)
rows_of_options = st.lists(
    st.builds(
        lambda asked, options, place: {
            "question": asked, "choices": options, "answer": place % len(options), "passage": "p",
        },
        cells, st.lists(cells, min_size=2, max_size=5, unique=True), st.integers(0, 9),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@given(rows=rows_of_options, name=st.sampled_from(sorted(KINDS)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_come_back_from_any_kind(tmp_path: Path, rows: list[dict[str, Any]], name: str) -> None:
    named = [{"id": str(place), **row} for place, row in enumerate(rows)]
    # A table of text has digits alone for an index, which may be the text of an option too.
    digits = any(option.strip() in string.digits for row in rows for option in row["choices"])
    if not (digits and name.endswith(("csv", "tsv", "gz", "zst"))):
        assert read_rows(save(tmp_path, name, named)) == named


def test_numbers_beyond_64_bits_and_typed_columns_stay(tmp_path: Path) -> None:
    large = [2**63 + 5, 2**64 - 1]
    made = pa.table({"id": pa.array(large, pa.uint64()), "question": ["a", "b"], "answer": ["x", "y"]})
    pq.write_table(made, tmp_path / "rows.parquet")
    assert [row["id"] for row in read_rows(tmp_path / "rows.parquet")] == [str(number) for number in large]
    write_rows(tmp_path / "rows.jsonl", [{"id": 10**30, "question": "a", "answer": "2024-01-31"}])
    [row] = read_rows(tmp_path / "rows.jsonl")
    assert (row["id"], row["answer"]) == (str(10**30), "2024-01-31")
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()):
        columns = {"id": pa.array(["1"]), "question": pa.array(["a"]), "answer": pa.array(["007"]).cast(kind)}
        with (
            pa.OSFile(str(tmp_path / "typed.arrow"), "wb") as sink,
            pa.ipc.new_file(
                sink, pa.schema([(name, column.type) for name, column in columns.items()])
            ) as file,
        ):
            file.write_table(pa.table(columns))
        assert read_rows(tmp_path / "typed.arrow")[0]["answer"] == "007"


def test_null_is_absent_in_tables_and_bytes_are_not_read(tmp_path: Path) -> None:
    made = table([{**question(1), "passage": None, "image": b"\x89PNG"}, {**question(2), "image": None}])
    pq.write_table(made, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [question(1), question(2)]


@pytest.mark.parametrize("several", [False, True])
def test_saved_folders_are_read(tmp_path: Path, several: bool) -> None:
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    # What is filtered is saved as it is seen.
    odd = saved.filter(lambda row: int(row["id"][1:]) % 2, keep_in_memory=True)
    if several:
        datasets.DatasetDict({"train": odd, "test": saved}).save_to_disk(tmp_path / "saved")
    else:
        odd.save_to_disk(tmp_path / "saved")
    run = run_on(tmp_path, "data.train=[{path: saved}]")
    manifest = run_data(run, tmp_path / "out")
    [entry] = manifest["training"]["datasets"]
    assert (entry["dataset"], entry["rows"], entry["files"][0]["kind"]) == ("saved", len(odd), "Arrow folder")
    assert [sample.id for sample in load_training(run)[0]] == [f"saved/train/{row['id']}" for row in odd]
    if several:
        with pytest.raises(UserError, match="has no split 'dev', but test, train"):
            load_training(run_on(tmp_path, "data.train=[{path: saved, split: dev}]"))


def sampled(folder: Path, *overrides: str) -> list[str]:
    return [sample.id for sample in load_training(run_on(folder, *overrides))[0]]


def test_folders_patterns_and_lists_of_files(tmp_path: Path) -> None:
    run_on(tmp_path)
    for place, name in enumerate(("b.jsonl", "a.parquet", "c.csv.gz")):
        kind = {"b.jsonl": "rows.jsonl", "a.parquet": "rows.parquet", "c.csv.gz": "rows.csv.gz"}[name]
        (tmp_path / "in").mkdir(exist_ok=True)
        save(tmp_path / "made", kind, [question(place)]).rename(tmp_path / "in" / name)
    (tmp_path / "in" / "README.md").write_text("about")
    (tmp_path / "in" / ".hidden.jsonl").write_text("no row")
    assert sampled(tmp_path, "data.train=[{path: in}]") == ["in/train/q1", "in/train/q0", "in/train/q2"]
    assert sampled(tmp_path, "data.train=[{path: 'in/?.*'}]") == [f"in/train/q{place}" for place in (1, 0, 2)]
    assert sampled(tmp_path, "data.train=[{path: 'in/*.parquet', split: s}]") == ["in/s/q1"]
    several = "data.train=[{name: mine, path: [in/c.csv.gz, 'in/b*', in/b.jsonl]}]"
    assert sampled(tmp_path, several) == ["mine/train/q2", "mine/train/q0"]
    identity = training_sources(run_on(tmp_path, several))[0].identity()
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps(question(7)) + "\n")
    assert training_sources(run_on(tmp_path, several))[0].identity() != identity


def test_what_leads_to_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path, says in (("in", "has no file of rows in it: it is empty"), ("'in/*'", "no file is like")):
        with pytest.raises(UserError, match=says):
            sampled(tmp_path, f"data.train=[{{path: {path}}}]")
    with pytest.raises(UserError, match=r"the data file .*gone\.jsonl does not exist"):
        sampled(tmp_path, "data.train=[{path: gone.jsonl}]")


def test_a_folder_with_splits_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for place, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test", "validation.1")):
        save(tmp_path / "made", "rows.parquet", [question(place)]).rename(tmp_path / f"{name}.parquet")
    (tmp_path / "in" / "data").mkdir(parents=True)
    for file in tmp_path.glob("*.parquet"):
        file.rename(tmp_path / "in" / "data" / file.name)
    assert sampled(tmp_path, "data.train=[{path: in}]") == ["in/train/q0", "in/train/q1"]
    assert sampled(tmp_path, "data.train=[{path: in, split: validation}]") == ["in/validation/q3"]
    with pytest.raises(UserError, match="has no file of the split 'dev', but"):
        sampled(tmp_path, "data.train=[{path: in, split: dev}]")
    task = "eval.tasks=[{name: mine, path: in, split: test}]"
    assert [sample.id for sample in load_evaluation(run_on(tmp_path, task))] == ["mine/test/q2"]


def test_a_data_root_may_hold_any_kind(tmp_path: Path) -> None:
    for part in range(2):
        made = save(tmp_path / "made", "rows.parquet", [question(part)])
        target = tmp_path / "data" / "openbookqa" / f"train-0000{part}-of-00002.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    run = ("data.train=[{name: openbookqa}]", "data.data_root=data")
    assert sampled(tmp_path, *run) == ["openbookqa/train/q0", "openbookqa/train/q1"]


def test_an_id_of_two_files_is_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / "in" / f"{name}.jsonl", [question(place, id=place) for place in range(3)])
    run = run_on(tmp_path, "data.train=[{path: in}]")
    samples, [record] = load_training(run)
    assert [sample.id for sample in samples][2:4] == ["in/train/2", "in/train/b.jsonl/0"]
    assert "3 rows have the id of a row in a file before" in record.notes[0]
    write_rows(tmp_path / "in" / "b.jsonl", [question(1, id=7), question(2, id=7)])
    with pytest.raises(UserError, match=r"b\.jsonl:2: the id '7' is already taken by .*b\.jsonl:1"):
        load_training(run)


def test_rows_without_id_are_named_after_file_and_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_rows(tmp_path / folder / "rows.jsonl", [{"question": folder, "answer": "a"}])
    assert sampled(tmp_path, "data.train=[{name: mine, path: [one/rows.jsonl, two]}]") == [
        "mine/train/one/rows.jsonl:1", "mine/train/two/rows.jsonl:1",
    ]  # fmt: skip
    (tmp_path / "rows.csv").write_bytes(separated([{"question": "a\nb", "answer": "a"}] * 2, ","))
    assert [row["id"] for row in read_rows(tmp_path / "rows.csv")] == ["rows.csv:2", "rows.csv:4"]
    pq.write_table(table([{"question": "q", "answer": "a"}] * 2), tmp_path / "rows.parquet")
    assert [row["id"] for row in read_rows(tmp_path / "rows.parquet")] == ["rows.parquet:1", "rows.parquet:2"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.parquet", b"PAR1" + bytes(99), "rows.parquet is damaged"),
        ("rows.arrow", b"ARROW1" + bytes(99), "rows.arrow is damaged"),
        ("rows.arrow", b"\xff\xff\xff\xff" + bytes(99), "rows.arrow is damaged"),
        ("rows.json", b'[{"id": 1, "question": "q"', "rows.json:1: not valid JSON: Expecting ',' delimiter"),
        ("rows.json", b'[\n{"id": 1},\n{"id": 2} {', "rows.json:3: not valid JSON: Expecting ','"),
        ("rows.json", b'[{"id": 1, "id": 2}]', "rows.json:1: not valid JSON: the key 'id' is given twice"),
        ("rows.json", b"[]", "rows.json holds no rows"),
        ("rows.json", b"[1, 2]", "rows.json, row 1: expected a JSON object, got 1"),
        ("rows.json", b'[{"id": 1}] {}', "text behind the end of the array"),
        ("rows.json", b"[" * 100_000, "it is nested too deep"),
        ("rows.json", b'{\n"id": 1,\n"question": "q"\n', "rows.json:1: not valid JSON"),
        ("rows.csv", b"id,question,answer\n", "rows.csv holds no rows"),
        ("rows.csv", b"id,question,id\n1,2,3\n", "rows.csv has two columns of the name 'id'"),
        ("rows.csv", b"id,question,answer\n1,q,a,b\n", "rows.csv:2: 4 cells under 3 columns"),
        ("rows.csv", b'id,question,answer\n1,"q,a\n', "rows.csv:2: no table of text: unexpected end of data"),
        ("rows.csv", b"id,question,answer\n1,\xff,a\n", "rows.csv: not UTF-8 text"),
        ("rows.jsonl.xz", b"\xfd7zXZ\x00" + bytes(50), "rows.jsonl.xz: damaged xz data"),
        ("rows.jsonl.bz2", b"BZh9" + bytes(50), "rows.jsonl.bz2: damaged bzip2 data"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(50), "rows.jsonl.zst: damaged zstd data"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / name)
    assert says in caught.value.message and caught.value.fix


def test_a_row_longer_than_a_block_and_numbers_at_its_end(tmp_path: Path) -> None:
    long = [question(place, question="w " * 400_000 + str(place)) for place in range(4)]
    assert read_rows(save(tmp_path, "indented.json", long)) == long
    (tmp_path / "numbers.json").write_text("[" + "1" * ((1 << 20) - 1) + "2]")
    with pytest.raises(UserError, match="not valid JSON"):
        read_rows(tmp_path / "numbers.json")


def test_first_rows_alone_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [*(question(place) for place in range(5)), {"id": "bad"}])
    assert len(sampled(tmp_path, "data.train.0.first=5")) == 5
    with pytest.raises(UserError, match=r"train\.jsonl:6"):
        sampled(tmp_path, "data.train.0.first=6")


def test_rows_are_in_memory_a_batch_at_a_time(tmp_path: Path) -> None:
    """Four times the rows take hardly more of Python's memory."""
    run_on(tmp_path)
    peaks = []
    for count in (4_000, 16_000):
        made = [question(place, question=f"Is it {place} " + "or so " * 30) for place in range(count)]
        pq.write_table(table(made), tmp_path / "rows.parquet")
        del made
        run = run_on(tmp_path, "data.train=[{path: rows.parquet}]")
        tracemalloc.start()
        manifest = run_data(run, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert manifest["training"]["samples"] == count
    assert peaks[1] < 1.5 * peaks[0] + 200 * 16_000
