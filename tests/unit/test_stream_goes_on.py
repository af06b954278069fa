"""A pass of the stream engine that is killed or whose disk is full, and goes on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stream_setting import DEPTH, Setting, assert_same, shards

from roma_ds.checkpoint.span import SpanLoader
from roma_ds.errors import EnvironmentFault
from roma_ds.frozen_pass import activations
from roma_ds.frozen_pass.stream import _Run
from roma_ds.sequences.batches import tokens_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def setting(tiny_model: Path, tmp_path: Path) -> Setting:
    return Setting(tiny_model, tmp_path)


class Killed(BaseException):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, batch: int) -> list[tuple[int, int]]:
    """Let the pass die at a batch of a step; gives (step, batch) of all that ran."""
    seen: list[tuple[int, int]] = []
    through = _Run._through
    at = [-1]

    def counted(run: _Run, number: int, network: Any) -> None:
        at[0] = number
        through(run, number, network)

    def advance(progress: Any, count: int = 1) -> None:
        seen.append((at[0], sum(place == at[0] for place, _ in seen)))
        if seen[-1] == (step, batch):
            raise Killed

    monkeypatch.setattr(_Run, "_through", counted)
    monkeypatch.setattr("roma_ds.progress.Progress.advance", advance)
    return seen


@pytest.mark.parametrize(
    ("step", "activation_bytes", "shared"),
    [
        *itertools.product(range(DEPTH + 1), (0, 1 << 30), (False,)),
        *itertools.product((0, DEPTH), (0, 1 << 30), (True,)),
    ],
)
def test_a_killed_pass_goes_on_at_its_layer(
    step: int,
    activation_bytes: int,
    shared: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = Setting(tiny_model, tmp_path, shared=shared)
    batches = [[setting.requests.sequences[number] for number in batch] for batch in setting.batches]
    run = sum(tokens_run(batch, shared) for batch in batches)
    assert (run < sum(setting.requests.lengths)) == shared
    undisturbed = setting.plan("undisturbed")
    wanted = setting.streamed("undisturbed-work", undisturbed).run()
    changes = {"activation_bytes": activation_bytes, "save_seconds": 0.0}
    with monkeypatch.context() as patch:
        stop_at(patch, step, 2)
        with pytest.raises(Killed):
            setting.streamed(cache=setting.plan("cache"), **changes).run()
    # As another process would: with a cache opened anew.
    cache = setting.plan("cache")
    assert cache.resumed
    loaded = []
    load = SpanLoader.load
    monkeypatch.setattr(SpanLoader, "load", lambda loader: loaded.append(loader.span) or load(loader))
    seen = stop_at(monkeypatch, -1, -1)
    found = setting.streamed(cache=cache, **changes).run()
    assert_same(found, wanted)
    assert shards(cache) == shards(undisturbed)
    assert seen[0] == (step, 0)
    assert len(loaded) == DEPTH + 2 - step
    assert cache.missing().size == 0
    cache.finish()


@pytest.mark.parametrize("activation_bytes", [(0, 1 << 30), (1 << 30, 0)], ids=str)
def test_the_budget_may_change_between_runs(
    setting: Setting, activation_bytes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting.streamed("undisturbed").run()
    for step, budget in zip((2, 4), activation_bytes, strict=True):
        with monkeypatch.context() as patch:
            seen = stop_at(patch, step, 1)
            with pytest.raises(Killed):
                setting.streamed(activation_bytes=budget, save_seconds=0.0).run()
            assert seen[0] == ((0, 0) if step == 2 else (2, 0))
    assert_same(setting.streamed().run(), wanted)


def test_short_passes_in_memory_write_no_hidden_states(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "preallocate", None)
    setting.streamed().run()


def test_a_finished_pass_gives_its_result_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = setting.streamed(cache=setting.plan("cache")).run()
    monkeypatch.setattr(SpanLoader, "load", None)
    assert_same(setting.streamed(cache=setting.plan("cache")).run(), wanted)


@pytest.mark.parametrize("what", ["fingerprint", "batches", "cache", "state", "activations", "routing"])
def test_what_does_not_fit_is_done_anew(setting: Setting, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = setting.plan("cache")
    with monkeypatch.context() as patch:
        stop_at(patch, 4, 1)
        with pytest.raises(Killed):
            setting.streamed(cache=cache, activation_bytes=0).run()
    changes: dict[str, Any] = {"activation_bytes": 0}
    work = setting.folder / "work"
    cache = setting.plan("cache")
    if what == "fingerprint":
        changes["fingerprint"] = "other"
    elif what == "batches":
        changes["batches"] = setting.batches[::-1]
    elif what == "cache":
        cache.close()
        shutil.rmtree(cache.folder)
        cache = setting.plan("cache")
    elif what == "state":
        (work / "state.json").write_text('{"steps": ')
    elif what == "activations":
        current = work / f"activations-{4 % 2}.bin"
        for path in work.glob("activations-*.bin"):
            path.write_bytes(path.read_bytes()[:-1])
        assert current.exists()
    else:
        (work / "routing-0001.npy").unlink()
    seen = stop_at(monkeypatch, -1, -1)
    found = setting.streamed(cache=cache, **changes).run()
    assert seen[0] == (0, 0)
    assert cache.missing().size == 0
    by_number = sorted(found.records(), key=lambda record: record[:2])
    wanted = sorted(setting.streamed("undisturbed").run().records(), key=lambda record: record[:2])
    for one, other in zip(by_number, wanted, strict=True):
        assert one[:5] == other[:5]


@pytest.mark.parametrize("activation_bytes", [0, 1 << 30], ids=["disk", "memory"])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_said_and_what_was_done_is_used(
    setting: Setting, call: str, activation_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = setting.streamed("undisturbed").run()
    job = setting.streamed(activation_bytes=activation_bytes, save_seconds=0.0)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, 1)
        with pytest.raises(Killed):
            job.run()
    real = getattr(os, call)
    calls = []

    def full(file: int, *arguments: Any) -> Any:
        name = os.readlink(f"/proc/self/fd/{file}")
        if "activations-" in name:
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "posix_fallocate":
            # The room for both files may be taken already: another pass starts from nothing.
            with pytest.raises(EnvironmentFault, match="GiB of disk") as caught:
                replace(job, folder=setting.folder / "other").run()
            assert not list((setting.folder / "other").glob("activations-*"))
        else:
            with pytest.raises(EnvironmentFault, match="GiB of disk") as caught:
                job.run()
    assert calls and "another output_dir" in str(caught.value.fix)
    seen = stop_at(monkeypatch, -1, -1)
    assert_same(job.run(), wanted)
    assert seen[0] == (3, 0)


def test_too_small_a_disk_is_said_before_anything_is_made(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=activations.RESERVE + 100))
    with pytest.raises(EnvironmentFault, match=r"need 0\.00 GiB of disk"):
        setting.streamed(activation_bytes=0).run()
    assert not list((setting.folder / "work").iterdir())


def test_a_rank_without_samples_finds_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpanLoader, "load", None)
    found = setting.streamed(batches=[]).run()
    assert len(found) == 0
    assert found.routing.shape == (0, DEPTH, 8)
    assert not (setting.folder / "work").exists()
