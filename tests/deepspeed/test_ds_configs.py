"""Each packaged DeepSpeed file trains on a CPU where DeepSpeed can, with the routers that zero0 gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.projects import Project, contents, largest_difference, roma_ds_here

from roma_ds.comm import World
from roma_ds.config import deepspeed_names
from roma_ds.config.packaged import deepspeed_file
from roma_ds.pipeline import machine_support
from roma_ds.pipeline.machine_support import has_async_io
from roma_ds.testing.local_ranks import on_ranks

TESTED_BY_EQUALITIES = {"zero1", "zero2", "zero3"}
NVME = "zero3_nvme"
"""Trained with where there is libaio, for which DeepSpeed first compiles."""
BUFFER = 100_000
"""Elements of each of its buffers in place of 300 million, which are locked in memory."""
TRAINED = ("zero0", "cpu", "zero3_offload_cpu", "zero3_hpz")
"""The last one's groups of ranks stay for the rest of a process."""
TOLERANCE = 1e-5


def train_with_each(world: World, config: str, folder: str) -> None:
    from roma_ds.pipeline.worker import load_for, run_stages

    World.close = lambda self: None  # type: ignore[method-assign]
    for name in TRAINED:
        changes = [f"output_dir={Path(folder) / name}", f"deepspeed={name}", "train.epochs=2"]
        run_stages(load_for(Path(config), changes, None), "train", None)


def test_every_file_that_can_run_here_gives_the_same_routers(indexed: Project, tmp_path: Path) -> None:
    assert {*TRAINED, NVME} | TESTED_BY_EQUALITIES == set(deepspeed_names())
    projects = {name: indexed.copied(tmp_path / name) for name in TRAINED}
    on_ranks(2, train_with_each, str(indexed.config), str(tmp_path), timeout_s=240)
    wanted = projects["zero0"].routers()
    for name, project in projects.items():
        assert largest_difference(project.routers(), wanted) < TOLERANCE, name


def train_from_disk(world: World, config: str, folder: str, settings: str) -> None:
    from roma_ds.pipeline.worker import load_for, run_stages

    World.close = lambda self: None  # type: ignore[method-assign]
    for name, file in (("disk", settings), ("memory", "zero3")):
        changes = [f"output_dir={Path(folder) / name}", f"deepspeed={file}", "train.epochs=2"]
        run_stages(load_for(Path(config), changes, None), "train", None)


@pytest.mark.skipif(not has_async_io(), reason="DeepSpeed's async_io needs libaio with its headers")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weights_that_wait_on_disk_give_the_same_routers(indexed: Project, tmp_path: Path) -> None:
    settings = json.loads(deepspeed_file(NVME).read_text())
    zero = settings["zero_optimization"]
    zero["offload_param"]["buffer_size"] = BUFFER
    # Else all weights of a tiny model are small enough to stay whole on every rank.
    zero["stage3_param_persistence_threshold"] = 1000
    (tmp_path / "nvme.json").write_text(json.dumps(settings))
    projects = {name: indexed.copied(tmp_path / name) for name in ("disk", "memory")}
    on_ranks(
        2, train_from_disk, str(indexed.config), str(tmp_path), str(tmp_path / "nvme.json"), timeout_s=800
    )
    assert largest_difference(projects["disk"].routers(), projects["memory"].routers()) < TOLERANCE
    assert (tmp_path / "disk" / "swap").is_dir()


def test_what_this_machine_cannot_do_is_said(
    indexed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_support, "has_async_io", lambda: False)
    project = indexed.copied(tmp_path / "out")
    before = contents(project.out, without=())
    for command in ("train", "check"):
        done = roma_ds_here(project.arguments(command, f"deepspeed={NVME}", ranks=1))
        assert done.code == 3, done
        assert "libaio" in done.err and "deepspeed=zero3_offload_cpu" in done.err, done
    assert contents(project.out, without=()) == before
