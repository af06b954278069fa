from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.errors import UserError
from roma_ds.storage import fingerprint
from roma_ds.storage.atomic import (
    make_folder,
    read_json,
    read_parquet,
    write_bytes,
    write_json,
    write_npy,
    write_parquet,
    write_text,
    writing,
)
from roma_ds.storage.stage import StageRecord

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=6)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=6,
)


class Boom(Exception):
    pass


def test_an_exception_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(Boom), writing(path) as temporary:
        temporary.write_text("half of the n")
        raise Boom
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_the_new_file_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with writing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename across file systems is a copy"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_crash_between_write_and_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_content_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    for content in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, content)
    assert read_json(path) == {"a": 1}


def test_other_users_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_npy_is_written_without_pickle(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_npy(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npy(tmp_path / "a.npy", np.array([{}], dtype=object))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


def test_parquet_round_trip_with_lists(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "values": [[0.5, 1.0], []], "flag": np.array([True, False])}
    write_parquet(tmp_path / "t.parquet", columns)
    assert read_parquet(tmp_path / "t.parquet") == {
        "id": ["a", "b"],
        "values": [[0.5, 1.0], []],
        "flag": [True, False],
    }


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_parquet_file_is_a_user_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, {"id": [str(number) for number in range(200)]})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"t\.parquet"):
        read_parquet(path)


def test_absent_files_are_user_errors(tmp_path: Path) -> None:
    for read in (read_json, read_parquet):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b'{"a"\x80: 1}'),
        *(b"[" * 100_000, b"7" * 5000, b'{"a": 1, "a": 2}'),
    ],
    ids=lambda content: content[:10],
)
def test_what_is_no_json_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write to the folder") as caught:
            make_folder(path)
        assert caught.value.exit_code == 2
        assert "output_dir" in str(caught.value)


def test_a_folder_without_write_permission_is_a_user_error(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match="cannot write to the folder"):
        make_folder(folder)


def test_make_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    assert os.listdir(make_folder(tmp_path / "a" / "b")) == []


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_fingerprints_ignore_key_order_and_see_every_value(content: dict[str, Any]) -> None:
    backwards = dict(reversed(list(content.items())))
    assert fingerprint.of_json(content) == fingerprint.of_json(backwards)
    assert fingerprint.of_json({**content, "another": 1}) != fingerprint.of_json(content)


def test_file_and_folder_fingerprints_change_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 3_000_000)
    before = fingerprint.of_file(path), fingerprint.of_folder(tmp_path)
    path.write_bytes(b"a" * 2_999_999 + b"b")
    os.utime(path, ns=(1, 1))
    assert fingerprint.of_file(path) != before[0]
    assert fingerprint.of_folder(tmp_path) != before[1]


def finished(folder: Path, inputs: dict[str, Any]) -> StageRecord:
    record = StageRecord(folder, folder.name)
    (folder / "out.bin").write_bytes(b"12345")
    record.finish(inputs, ["out.bin"], 1.23456, {"n": 1})
    return record


@pytest.fixture
def stage_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "collect"
    folder.mkdir()
    return folder


def test_reasons_to_run_a_stage_again(stage_folder: Path) -> None:
    inputs = {"data": "abc", "model": "m", "tokens": "last1"}
    assert StageRecord(stage_folder, "collect").why_stale(inputs) == "not run yet"
    record = finished(stage_folder, inputs)
    assert record.why_stale(inputs) is None
    assert record.why_stale({**inputs, "tokens": "last3", "data": "x"}) == "changed since: data, tokens"
    assert record.why_stale({**inputs, "more": 1}) == "changed since: more"
    assert record.why_stale({"data": "abc", "model": "m"}) == "changed since: tokens"
    (stage_folder / "out.bin").write_bytes(b"1234")
    assert record.why_stale(inputs) == "out.bin has another size than when it was written"
    (stage_folder / "out.bin").unlink()
    assert record.why_stale(inputs) == "out.bin is missing"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"inputs": 3}', b'"text"'])
def test_a_damaged_record_is_a_reason_and_no_crash(stage_folder: Path, content: bytes) -> None:
    record = finished(stage_folder, {"a": 1})
    record.path.write_bytes(content)
    assert record.why_stale({"a": 1}) == "its record is damaged"


def test_the_record_is_written_last_and_whole(stage_folder: Path) -> None:
    record = StageRecord(stage_folder, "collect")
    with pytest.raises(FileNotFoundError):
        record.finish({}, ["absent.npy"], 0.0, {})
    assert not record.path.exists(), "a record of outputs that are not there"


def test_what_a_record_holds(stage_folder: Path) -> None:
    record = finished(stage_folder, {"a": 1})
    content = json.loads((stage_folder / "stage.json").read_text())
    assert (
        content
        == record.read()
        == {
            "stage": "collect",
            "fingerprint": fingerprint.of_json({"a": 1}),
            "inputs": {"a": 1},
            "outputs": {"out.bin": 5},
            "seconds": 1.235,
            "extra": {"n": 1},
        }
    )


def test_stages_that_share_a_folder_have_records_of_their_own(tmp_path: Path) -> None:
    assert StageRecord(tmp_path / "eval", "base").path.name == "base.stage.json"
    assert StageRecord(tmp_path / "eval", "eval").path.name == "stage.json"


@settings(max_examples=60)
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_stage_is_current_exactly_for_the_inputs_it_was_made_from(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any], asked: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "hypothesis" / "index"
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        record = finished(folder, made)
    assert record.why_stale(made) is None

    def given_values(inputs: dict[str, Any]) -> str:
        """None counts as not given, at the top."""
        return fingerprint.of_json({key: value for key, value in inputs.items() if value is not None})

    assert (record.why_stale(asked) is None) == (given_values(made) == given_values(asked))


def test_a_tuple_among_the_inputs_does_not_make_a_stage_stale_for_ever(stage_folder: Path) -> None:
    record = finished(stage_folder, {"layers": (2, 3)})
    assert record.why_stale({"layers": (2, 3)}) is None
    assert record.why_stale({"layers": [2, 3]}) is None
    assert record.why_stale({"layers": (2, 4)}) == "changed since: layers"
