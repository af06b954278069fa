from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from roma_ds.errors import UserError
from roma_ds.sequences.encoding import Prompt
from roma_ds.sequences.found import COLUMNS, Found, Record
from roma_ds.sequences.scores import Scores

FLOATS = st.floats(width=32, allow_nan=False)


@st.composite
def record_lists(draw: st.DrawFn, layers: int = 2, experts: int = 3) -> list[Record]:
    records: list[Record] = []
    for _ in range(draw(st.integers(0, 6))):
        options = draw(st.lists(FLOATS, max_size=4))
        routing = draw(
            st.lists(st.floats(0, 1, width=16), min_size=layers * experts, max_size=layers * experts)
        )
        records.append(
            (
                draw(st.integers(0, 2**40)),
                draw(st.integers(-1, 9)),
                draw(FLOATS),
                draw(st.booleans()),
                draw(FLOATS),
                np.array(options, np.float32) if options else None,
                np.array(routing, np.float16).reshape(layers, experts),
            )
        )
    return records


def assert_same_records(one: list[Record], other: list[Record]) -> None:
    assert [record[:5] for record in one] == [record[:5] for record in other]
    for mine, theirs in zip(one, other, strict=True):
        assert (mine[5] is None) == (theirs[5] is None)
        if mine[5] is not None and theirs[5] is not None:
            assert mine[5].dtype == theirs[5].dtype == np.float32
            assert mine[5].tobytes() == theirs[5].tobytes()
        assert mine[6].dtype == theirs[6].dtype == np.float16
        assert mine[6].tobytes() == theirs[6].tobytes()


@given(record_lists())
def test_records_come_back(records: list[Record]) -> None:
    found = Found.from_records(iter(records), 2, 3)
    assert len(found) == len(records)
    assert_same_records(list(found.records()), records)
    assert found.routing.shape == (len(records), 2, 3)
    for name, (dtype, dimensions) in COLUMNS.items():
        assert (getattr(found, name).dtype, getattr(found, name).ndim) == (dtype, dimensions)


@given(st.lists(record_lists(), min_size=1, max_size=4))
def test_parts_in_their_order(parts: list[list[Record]]) -> None:
    joined = Found.concatenate([Found.from_records(part, 2, 3) for part in parts])
    assert_same_records(list(joined.records()), [record for part in parts for record in part])


@given(record_lists())
def test_a_file_holds_the_same_and_has_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("found")
    Found.from_records(records, 2, 3).save(folder / "a.safetensors")
    again = Found.load(folder / "a.safetensors")
    assert_same_records(list(again.records()), records)
    again.save(folder / "b.safetensors")
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors"]


def some(count: int = 5) -> Found:
    source = np.random.default_rng(0)
    return Found.from_records(
        [
            (
                place,
                -1,
                -1.5 * place,
                place % 2 == 0,
                0.25,
                np.arange(place, dtype=np.float32) if place else None,
                source.random((2, 3)).astype(np.float16),
            )
            for place in range(count)
        ],
        2,
        3,
    )


def test_results_that_are_views_are_written_as_they_read(tmp_path: Path) -> None:
    plain = some()
    strided = np.asfortranarray(plain.routing)
    other = Found(**{**{name: getattr(plain, name) for name in COLUMNS}, "routing": strided})
    plain.save(tmp_path / "a")
    other.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "found.safetensors"
    some(3).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        some(5).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file_is_a_user_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "found.safetensors"
    some().save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"found\.safetensors is damaged"):
        Found.load(path)


def test_an_absent_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Found.load(tmp_path / "absent")


@pytest.mark.parametrize("fault", ["missing", "unknown", "type", "length", "counts"])
def test_a_file_of_another_kind_is_a_user_error(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "found.safetensors"
    some().save(path)
    columns = load_file(path)
    if fault == "missing":
        del columns["margin"]
    elif fault == "unknown":
        columns["more"] = columns["margin"]
    elif fault == "type":
        columns["row"] = columns["row"].astype(np.int32)
    elif fault == "length":
        columns["greedy"] = columns["greedy"][:-1]
    else:
        columns["options"] = columns["options"][:-1]
    save_file(columns, path)
    with pytest.raises(UserError, match="is damaged"):
        Found.load(path)


def test_routing_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3, 2\)"):
        Found.from_records(some().records(), 3, 2)


def test_scores_are_the_same_from_records_and_from_a_file(tmp_path: Path) -> None:
    routing = np.full((1, 2), 0.5, np.float16)
    prompts = [
        Prompt(0, (1, 2), (3,), ((3,), (4,)), 0, False),
        Prompt(1, (1, 2), (3, 4), ((3, 4), (5, 6)), 1, False),
        Prompt(2, (1,), (7, 8), (), -1, False),
    ]
    records: list[Record] = [
        (0, -1, -0.5, True, 0.75, np.array([-0.5, -1.25], np.float32), routing),
        (1, 0, -3.5, False, -0.5, None, routing),
        (1, 1, -2.5, True, 0.5, None, routing),
        (2, -1, -4.0, False, -0.25, None, routing),
    ]
    Found.from_records(records, 1, 2).save(tmp_path / "found.safetensors")
    again = Found.load(tmp_path / "found.safetensors").records()
    one, other = Scores.assemble(prompts, records, 9), Scores.assemble(prompts, again, 9)
    for mine, theirs in zip(one.option_loglikelihoods, other.option_loglikelihoods, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("target_loglikelihood", "loss", "predicted", "correct", "margin", "routing"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
