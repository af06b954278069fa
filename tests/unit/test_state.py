from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roma_ds.training.state import TENSORS, ResumeState, load_newest, save_state


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def state(step: int, shape: tuple[int, int] = (4, 3), layers: tuple[int, ...] = (2, 11)) -> ResumeState:
    generator = torch.Generator().manual_seed(step)

    def tensors() -> dict[int, torch.Tensor]:
        return {layer: torch.randn(shape, generator=generator) for layer in layers}

    return ResumeState(step, tensors(), {"exp_avg": tensors(), "exp_avg_sq": tensors()})


def same(one: ResumeState, other: ResumeState) -> bool:
    pairs = [
        (one.masters, other.masters),
        *((one.moments[n], other.moments[n]) for n in ("exp_avg", "exp_avg_sq")),
    ]
    return (
        one.step == other.step
        and set(one.moments) == set(other.moments)
        and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)
    )


def load(folder: Path, inputs: str = "run") -> tuple[ResumeState | None, list[str]]:
    said: list[str] = []
    return load_newest(folder, inputs, said.append), said


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 10**7),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(0, 200), min_size=1, max_size=4, unique=True),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, step: int, shape: tuple[int, int], layers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("states")
    saved = state(step, shape, tuple(layers))
    save_state(folder, saved, "run", 2)
    found, said = load(folder)
    assert found is not None
    assert same(found, saved)
    assert not said


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    assert load(tmp_path) == (None, [])
    assert load(tmp_path / "absent") == (None, [])


def test_later_steps_of_another_run_do_not_push_out_new_states(tmp_path: Path) -> None:
    for step in (200, 400):
        save_state(tmp_path, state(step), "another run", 2)
    save_state(tmp_path, state(50), "run", 2)
    found, _ = load(tmp_path)
    assert found is not None
    assert same(found, state(50))


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-cut").mkdir()
    save_state(tmp_path, state(3), "run", 2)
    assert os.listdir(tmp_path) == ["step-3"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (2, 9, 10, 100):
        save_state(tmp_path, state(step), "run", keep)
    assert sorted(os.listdir(tmp_path)) == sorted(["step-100", "step-10", "step-9"][:keep])
    found, _ = load(tmp_path)
    assert found is not None
    assert found.step == 100, "by number, not by name"


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save_state(tmp_path, state(5), "other", 2)
    path = save_state(tmp_path, state(5), "run", 2)
    assert path == tmp_path / "step-5"
    found, said = load(tmp_path)
    assert found is not None
    assert same(found, state(5))
    assert not said


def test_states_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    save_state(tmp_path, state(5), "run", 3)
    save_state(tmp_path, state(9), "other", 3)
    found, said = load(tmp_path)
    assert found is not None
    assert found.step == 5
    assert said == ["state of step 9 belongs to another config, data or global batch; not resumed"]
    assert load(tmp_path, "third")[0] is None


def damaged_newest(folder: Path, file: str, content: bytes | None) -> None:
    """The newest state with `file` replaced by `content` (None: absent) is passed over, with a message."""
    for step in (5, 9):
        save_state(folder, state(step), "run", 3)
    path = folder / "step-9" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    found, said = load(folder)
    assert found is not None
    assert same(found, state(5))
    assert len(said) == 1
    assert said[0].startswith("state of step 9 is damaged (")
    assert said[0].endswith("; trying the one before it")


def content_of(folder: Path, file: str) -> bytes:
    return (save_state(folder / "whole", state(9), "run", 3) / file).read_bytes()


@pytest.mark.parametrize("file", [TENSORS, "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95])
def test_a_cut_state_is_passed_over(tmp_path: Path, file: str, share: float) -> None:
    whole = content_of(tmp_path, file)
    damaged_newest(tmp_path / "run", file, whole[: int(len(whole) * share)])


@pytest.mark.parametrize("file", [TENSORS, "state.json"])
def test_a_state_without_a_file_is_passed_over(tmp_path: Path, file: str) -> None:
    damaged_newest(tmp_path, file, None)


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'{"step": null}', b"\xff\xff", b'{"step": 9}'])
def test_a_state_record_of_another_form_is_passed_over(tmp_path: Path, content: bytes) -> None:
    damaged_newest(tmp_path, "state.json", content)


def test_a_state_without_masters_is_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from roma_ds.storage import fingerprint

    path = save_state(tmp_path, state(9), "run", 2)
    save_file({"exp_avg.2": torch.zeros(1)}, path / TENSORS)
    facts = {"step": 9, "inputs": "run", "sha256": fingerprint.of_file(path / TENSORS)}
    (path / "state.json").write_text(json.dumps(facts))
    found, said = load(tmp_path)
    assert found is None
    assert "damaged" in said[0]


def flips(content: bytes, every: int) -> list[bytes]:
    found = []
    for bit in range(0, 8 * len(content), every):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        found.append(bytes(changed))
    return found


def test_no_flipped_bit_is_resumed_from(tmp_path: Path) -> None:
    """Whatever bit of the newest state flips, what is resumed is a state that was saved, or none."""
    path = save_state(tmp_path, state(9, (2, 2), (1,)), "run", 2)
    for file, every in ((TENSORS, 97), ("state.json", 1)):
        whole = (path / file).read_bytes()
        for content in flips(whole, every):
            (path / file).write_bytes(content)
            found, said = load(tmp_path)
            # JSON has white space and letter case in escapes: a flip may leave the same facts.
            assert found is None or same(found, state(9, (2, 2), (1,))), content
            assert found is not None or said
        (path / file).write_bytes(whole)


def test_a_write_that_fails_leaves_the_older_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, state(5), "run", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path, state(9), "run", 1)
    monkeypatch.undo()
    found, said = load(tmp_path)
    assert found is not None
    assert found.step == 5
    assert not said
    assert os.listdir(tmp_path) == ["step-5"], "no half state left behind"
