from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config import TrainConfig
from roma_ds.pipeline.stages import _say_if_stopped_on_others
from roma_ds.storage import fingerprint
from roma_ds.training.other_states import DAMAGED, OTHERS, put_damaged_aside, take_over
from roma_ds.training.state import (
    INDEX,
    MANIFEST,
    ROUTERS,
    SavedState,
    StateFacts,
    StateWriter,
    load_best,
    load_newest,
)

FILES = (ROUTERS, INDEX, MANIFEST)
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def routers(step: int, shape: tuple[int, int] = (4, 3), layers: tuple[int, ...] = (2, 11)) -> Arrays:
    source = np.random.default_rng(step)
    names = [f"{name}.{layer}" for name in ("master", "exp_avg", "exp_avg_sq") for layer in layers]
    return {name: source.standard_normal(shape).astype(np.float32) for name in names}


def index(step: int) -> Arrays:
    source = np.random.default_rng([step, 1])
    return {
        "epoch": np.array([step], np.int64),
        "vectors": source.standard_normal((5, 4)).astype(np.float32),
        "waiting_right": np.array([True, False]),
    }


def save(
    folder: Path,
    step: int,
    inputs: str = "run",
    keep: int = 3,
    loss: float | None = None,
    arrays: Arrays | None = None,
    keep_best: bool = True,
    with_index: bool = True,
) -> Path:
    arrays = routers(step) if arrays is None else arrays
    writer = StateWriter(folder, {name: (array.dtype, array.shape) for name, array in arrays.items()})
    try:
        for name, array in arrays.items():
            writer.add(name, array)
        facts = StateFacts(step, step - 1, inputs, loss)
        return writer.finish(facts, index(step) if with_index else {}, keep, keep_best)
    finally:
        writer.abandon()


def load(folder: Path, inputs: str = "run") -> tuple[SavedState | None, list[str]]:
    said: list[str] = []
    return load_newest(folder, inputs, said.append), said


def is_state_of(found: SavedState | None, step: int, arrays: Arrays | None = None) -> bool:
    """Whether every array and fact is that of `save`."""
    assert found is not None
    pairs = [
        (routers(step) if arrays is None else arrays, {k: found.routers.read(k) for k in found.routers.keys}),
        (index(step), found.index()),
    ]
    return found.facts.step == step and all(
        one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
        for one, other in pairs
    )


@settings(max_examples=25)
@given(
    st.integers(1, 10**7),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(0, 200), min_size=1, max_size=4, unique=True),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, step: int, shape: tuple[int, int], layers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("states")
    arrays = routers(step, shape, tuple(layers))
    save(folder, step, loss=0.25, arrays=arrays)
    found, said = load(folder)
    assert is_state_of(found, step, arrays)
    assert found is not None and found.facts == StateFacts(step, step - 1, "run", 0.25)
    assert not said


def test_others_read_the_files_too(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = load_file(save(tmp_path, 7) / ROUTERS)
    assert all(np.array_equal(found[name], array) for name, array in routers(7).items())


def test_arrays_come_as_they_were_announced(tmp_path: Path) -> None:
    arrays = routers(1)
    entries = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    writer = StateWriter(tmp_path, entries)
    with pytest.raises(ValueError, match=r"where .*master\.2.* is due"):
        writer.add("master.11", arrays["master.11"])
    writer.add("master.2", arrays["master.2"])
    with pytest.raises(ValueError, match=r"master\.11, .* announced and not given"):
        writer.finish(StateFacts(1, 1, "run"), {}, 2, True)
    writer.abandon()
    assert not os.listdir(tmp_path)


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    assert load(tmp_path) == (None, [])
    assert load(tmp_path / "absent") == (None, [])


def test_saving_deletes_no_state_of_another_run(tmp_path: Path) -> None:
    for step in (5, 200, 400):
        save(tmp_path, step, "another run", 9, loss=0.0)
    for step in (50, 60, 70):
        save(tmp_path, step, "run", 1, loss=0.5 if step < 60 else 0.7)
    assert is_state_of(load(tmp_path)[0], 70)
    assert is_state_of(load(tmp_path, "another run")[0], 400)
    assert sorted(int(name[5:]) for name in os.listdir(tmp_path)) == [5, 50, 70, 200, 400]


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-cut").mkdir()
    save(tmp_path, 3)
    assert os.listdir(tmp_path) == ["step-3"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (2, 9, 10, 100):
        save(tmp_path, step, keep=keep)
    assert sorted(os.listdir(tmp_path)) == sorted(["step-100", "step-10", "step-9"][:keep])
    found, _ = load(tmp_path)
    assert found is not None
    assert found.facts.step == 100, "by number, not by name"


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [20, 40, 50]), (False, [40, 50])])
def test_the_best_is_kept_beside_the_newest(tmp_path: Path, keep_best: bool, kept: list[int]) -> None:
    for step, loss in ((10, 0.9), (20, 0.3), (30, 0.5), (40, 0.4), (50, None)):
        save(tmp_path, step, keep=2, loss=loss, keep_best=keep_best)
    assert sorted(int(name[5:]) for name in os.listdir(tmp_path)) == kept
    said: list[str] = []
    best = load_best(tmp_path, "run", said.append)
    assert is_state_of(best, kept[0]) and not said
    assert load_best(tmp_path, "third run", said.append) is None
    assert said == [
        f"no state in {tmp_path} that knows its loss is whole: the routers of the last step are the result"
    ]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (ROUTERS, f"state of step 5 is damaged ({ROUTERS} does not match its checksum); trying that of the"),
        (MANIFEST, f"state of step 5 is damaged ({MANIFEST} "),
    ],
)
def test_a_damaged_best_state_is_named_and_the_next_best_taken(tmp_path: Path, file: str, says: str) -> None:
    for step, loss in ((5, 0.1), (9, 0.5), (12, 0.7)):
        save(tmp_path, step, keep=9, loss=loss)
    path = tmp_path / "step-5" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    said: list[str] = []
    assert is_state_of(load_best(tmp_path, "run", said.append), 9)
    assert len(said) == 1 and said[0].startswith(says), said


def test_of_equally_good_states_the_later_is_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=1, loss=0.5 if step < 30 else 0.7)
    assert sorted(os.listdir(tmp_path)) == ["step-20", "step-30"]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5, "other", arrays=routers(1))
    assert save(tmp_path, 5) == tmp_path / "step-5"
    found, said = load(tmp_path)
    assert is_state_of(found, 5)
    assert not said
    assert is_state_of(load(tmp_path / OTHERS / "other", "other")[0], 5, routers(1))


def test_states_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 9, "other")
    found, said = load(tmp_path)
    assert is_state_of(found, 5)
    assert said == ["state of step 9 belongs to another config, data or global batch; not resumed"]
    assert load(tmp_path, "third")[0] is None


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of some kilobytes after steps 5 and 9."""
    folder = tmp_path_factory.mktemp("two")
    for step in (5, 9):
        save(folder, step, arrays=routers(step, (16, 40)))
    assert (folder / "step-9" / ROUTERS).stat().st_size > 12 * 1024
    return folder


@pytest.fixture
def whole(two: Path) -> Iterator[Path]:
    """`two`, put back as it was."""
    before = {file: (two / "step-9" / file).read_bytes() for file in FILES}
    yield two
    for file, content in before.items():
        (two / "step-9" / file).write_bytes(content)


def is_named_and_fallen_back_from(folder: Path, file: str) -> bool:
    found, said = load(folder)
    return (
        is_state_of(found, 5, routers(5, (16, 40)))
        and len(said) == 1
        and said[0].startswith(f"state of step 9 is damaged ({file} ")
        and said[0].endswith("; trying the one before it")
    )


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_anywhere_is_named(file: str, whole: Path) -> None:
    """At every kilobyte, at every byte of the first and last 200, and longer than it was."""
    path = whole / "step-9" / file
    content = path.read_bytes()
    size = len(content)
    near = range(min(size, 200)), range(max(0, size - 200), size), range(0, size, 1024)
    for cut in sorted({place for places in near for place in places}):
        path.write_bytes(content[:cut])
        assert is_named_and_fallen_back_from(whole, file), cut
    path.write_bytes(content + b"\n")
    assert is_named_and_fallen_back_from(whole, file)


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_named(file: str, two: Path) -> None:
    path = two / "step-9" / file
    content = path.read_bytes()

    @settings(max_examples=150)
    @given(st.integers(0, 8 * len(content) - 1))
    def flipped(bit: int) -> None:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert is_named_and_fallen_back_from(two, file), bit

    try:
        flipped()
    finally:
        path.write_bytes(content)


def test_every_bit_of_the_manifest_counts(whole: Path) -> None:
    path = whole / "step-9" / MANIFEST
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert is_named_and_fallen_back_from(whole, MANIFEST), bit


@pytest.mark.parametrize("file", FILES)
def test_a_state_without_a_file_is_passed_over(file: str, whole: Path) -> None:
    (whole / "step-9" / file).unlink()
    assert is_named_and_fallen_back_from(whole, file)


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'{"step": null}', b"\xff\xff", b'{"step": 9}'])
def test_a_manifest_of_another_form_is_passed_over(content: bytes, whole: Path) -> None:
    (whole / "step-9" / MANIFEST).write_bytes(content)
    assert is_named_and_fallen_back_from(whole, MANIFEST)


def test_a_manifest_of_another_step_or_format_is_passed_over(whole: Path) -> None:
    path = whole / "step-9" / MANIFEST
    path.write_bytes((whole / "step-5" / MANIFEST).read_bytes())
    assert is_named_and_fallen_back_from(whole, MANIFEST)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    assert load(whole)[1][0].startswith("state of step 9 is damaged (state.json has the format 1")


def test_with_all_states_damaged_it_says_where_training_begins(tmp_path: Path) -> None:
    for step in (5, 9):
        (save(tmp_path, step) / ROUTERS).write_bytes(b"")
    found, said = load(tmp_path)
    assert found is None
    assert [line.split(" is damaged")[0] for line in said[:2]] == ["state of step 9", "state of step 5"]
    assert said[2] == f"no state in {tmp_path} is whole: training starts from the beginning"


@pytest.mark.parametrize("fails_at", ["add", "replace"])
def test_a_write_that_fails_leaves_the_older_states(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if fails_at == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(StateWriter, "add", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 9, keep=1)
    monkeypatch.undo()
    found, said = load(tmp_path)
    assert is_state_of(found, 5)
    assert not said
    assert os.listdir(tmp_path) == ["step-5"], "no half state left behind"


def switch(state: Path, inputs: str) -> tuple[SavedState | None, list[str]]:
    """As a training begins: the folder becomes that of the run, and the newest state is loaded."""
    said: list[str] = []
    take_over(state, inputs, said.append)
    found = load_newest(state, inputs, said.append)
    put_damaged_aside(state, inputs, found.facts.step if found is not None else 0, said.append)
    return found, said


def log(state: Path, text: str) -> None:
    (state.parent / "metrics.jsonl").write_text(text)


def logged(state: Path) -> str | None:
    path = state.parent / "metrics.jsonl"
    return path.read_text() if path.exists() else None


RUNS = st.lists(
    st.tuples(st.sampled_from(["one", "two", "three"]), st.integers(1, 4), st.integers(1, 2)), max_size=6
)


@settings(max_examples=10, deadline=None)
@given(RUNS)
def test_runs_that_take_turns_in_a_folder_each_go_on_where_they_were(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, int, int]]
) -> None:
    """Each turn saves some steps of one run and logs; its newest state, best state and log wait for it."""
    state = tmp_path_factory.mktemp("turns") / "state"
    done: dict[str, int] = {}
    logs: dict[str, str] = {}
    for run, steps, keep in turns:
        found, _ = switch(state, run)
        assert (found.facts.step if found is not None else 0) == done.get(run, 0)
        assert logged(state) == logs.get(run)
        for step in range(done.get(run, 0) + 1, done.get(run, 0) + steps + 1):
            save(state, step, run, keep, loss=float(step))
        done[run] = done.get(run, 0) + steps
        logs[run] = f"{run} to {done[run]}"
        log(state, logs[run])
        assert f"step-{done[run]}" in os.listdir(state)
    for run, last in done.items():
        assert is_state_of(switch(state, run)[0], last)
        best = load_best(state, run, print)
        assert best is not None and best.facts.step == 1, "however often others were in between"


def test_states_of_another_run_are_named_and_kept_and_come_back(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for step in (2, 3):
        save(state, step, "two ranks")
    log(state, "two ranks")
    found, said = switch(state, "one rank")
    assert found is None
    assert said == [
        f"state of step {step} belongs to another config, data or global batch; not resumed, "
        f"kept as {state / OTHERS / 'two ranks' / f'step-{step}'}"
        for step in (2, 3)
    ]
    assert logged(state) is None
    save(state, 3, "one rank", keep=1)
    found, said = switch(state, "two ranks")
    assert is_state_of(found, 3) and logged(state) == "two ranks"
    assert sorted(os.listdir(state / OTHERS)) == ["one rank"]
    assert is_state_of(switch(state, "one rank")[0], 3)


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_between_two_moves_loses_nothing(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, rename = tmp_path / "state", os.replace
    for step in (1, 2):
        save(state, step, "two ranks")
    log(state, "two ranks")
    left = moves

    def killed(source: Path, target: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        rename(source, target)

    for run in ("one rank", "two ranks"):
        left = moves
        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            switch(state, run)
        monkeypatch.undo()
        monkeypatch.setattr(os, "fsync", lambda _: None)
    assert is_state_of(switch(state, "two ranks")[0], 2)
    assert logged(state) == "two ranks"
    assert sorted(name for name in os.listdir(state) if name != OTHERS) == ["step-1", "step-2"]


def test_a_damaged_state_is_kept_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for step in (3, 6, 9):
        save(state, step, keep=9, arrays=routers(step))
    (state / "step-6" / MANIFEST).write_bytes(b"{")
    (state / "step-9" / ROUTERS).write_bytes(b"")
    found, said = switch(state, "run")
    assert is_state_of(found, 3)
    assert {path.name for path in (state / OTHERS / DAMAGED).iterdir()} == {"step-6", "step-9"}
    kept = next(line for line in said if "kept as" in line)
    assert kept.startswith("state of step 6 is not gone on from")
    for step in (6, 9):
        save(state, step, keep=1)
    (state / "step-9" / ROUTERS).write_bytes(b"")
    assert switch(state, "run")[0] is None
    names = {path.name for path in (state / OTHERS / DAMAGED).iterdir()}
    assert names == {"step-6", "step-9", "step-9.2"}


def test_a_training_that_stopped_on_other_ranks_is_named_with_its_batch(tmp_path: Path) -> None:
    """Two ranks of 8 were stopped; the same config on one rank is told which batch goes on."""
    made: dict[str, object] = {"data": "same"}
    save(tmp_path, 3, fingerprint.of_json({**made, "global_batch": 16}))

    def told(ranks: int, **train: int) -> list[str]:
        said: list[str] = []
        config = TrainConfig(**train)
        session = SimpleNamespace(
            world=World(Ranks(), torch.device("cpu")), run=SimpleNamespace(train=config), say=said.append
        )
        inputs = {**made, "global_batch": config.split(ranks).samples}
        _say_if_stopped_on_others(session, tmp_path, inputs)  # type: ignore[arg-type]
        return said

    note = f"{tmp_path} is of the same training with 16 samples an update: train.batch=16 goes on from it"
    assert told(1) == [note]
    assert told(1, micro_batch=16) == told(2) == told(1, batch=8) == []
    assert told(1, micro_batch=5) == [], "no number of ranks makes 16 of it"
