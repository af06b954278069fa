"""The prefix cache of whole commands: killed and full on the way, and training from it alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli.projects import (
    Finished,
    Forked,
    Project,
    contents,
    largest_difference,
    make_project,
    none_left,
)

from roma_ds.planner.cache_size import LINK_BYTES, SEGMENT_BYTES
from roma_ds.storage.atomic import read_json, read_parquet

pytestmark = pytest.mark.timeout(900)

ROWS = 80
SETTINGS = (
    "deepspeed=zero3",
    "collect.engine=zero3",
    "train.prefix_cache=on",
    "eval.batch_size=2",
    "controls=[router_tuning]",
)
SAVING = (*SETTINGS, "collect.save_every=0.01")


@pytest.fixture(scope="module", autouse=True)
def threads_alike() -> Iterator[None]:
    """One thread a rank, however many ranks: how a product is cut between threads decides its last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, threads_alike: None) -> Project:
    """Evaluated on two ranks without any interruption; copy it, do not change it."""
    project = make_project(tmp_path_factory.mktemp("cached"), rows=ROWS, epochs=1, words=40)
    done = project.run("eval", *SETTINGS)
    assert done.code == 0, done
    assert "layers 2-3 on cached hidden states" in done.out
    return project


class Collecting:
    """`roma-ds collect` in the background, watched through the parts that it saves."""

    def __init__(self, project: Project, ranks: int = 2) -> None:
        self.parts = project.out / "collect" / "unfinished"
        self.found = self.saved()
        arguments = project.arguments("collect", *SAVING, ranks=ranks)
        self.started = Forked(arguments, project.folder)

    def saved(self) -> dict[str, str]:
        return {name: digest for name, digest in contents(self.parts).items() if name.startswith("part-")}

    def saves(self, count: int) -> None:
        """Wait until it has saved `count` parts of its own."""
        deadline = time.monotonic() + 120
        while len(list(self.parts.glob("part-*"))) < len(self.found) + count:
            if self.started.has_ended() or time.monotonic() > deadline:
                raise AssertionError(f"no {count} parts\n{self.started.finish(0.1)}")
            time.sleep(0.01)

    def ended(self) -> Finished:
        """How it ended, with nothing that it found rewritten, and with what it saved still there."""
        family = self.started.descendants()
        done = self.started.finish(60)
        none_left(family)
        assert "Traceback" not in done.err, done
        now = self.saved()
        assert {name: now[name] for name in self.found} == self.found
        assert len(now) > len(self.found)
        return done


def test_killed_and_run_again(finished: Project, tmp_path: Path) -> None:
    """The loss of a rank, then Ctrl-C on another number of ranks, each followed by the same command."""
    project = Project(finished.folder, tmp_path / "out")
    killed = Collecting(project)
    killed.saves(6)
    killed.started.ranks()[-1].kill()
    done = killed.ended()
    assert done.code == 1, done
    assert "a rank was killed" in done.err and "rerun the same command" in done.err, done
    left = rows_left(project)

    alone = Collecting(project, ranks=1)
    alone.saves(4)
    alone.started.signal(signal.SIGINT)
    done = alone.ended()
    assert done.code == 128 + signal.SIGINT, done
    assert done.err.count("roma-ds: stopped") == 1 and "rerun the same command" in done.err, done
    assert progress(done)[1] == left
    before, left = left, rows_left(project)
    assert 0 < left < before < ROWS

    done = project.run("collect", *SAVING)
    assert done.code == 0, done
    # Rank 0 shows its own share of the batches.
    assert progress(done)[1] <= (left + 1) // 2 + 3
    assert not (project.out / "collect" / "unfinished").exists()
    assert cache_and_results(project) == cache_and_results(finished)


def rows_left(project: Project) -> int:
    """Rows that no saved part holds."""
    from safetensors.numpy import load_file

    parts = (project.out / "collect" / "unfinished").glob("part-*.safetensors")
    return ROWS - len({int(row) for path in parts for row in load_file(path)["row"]})


def progress(done: Finished) -> tuple[int, int]:
    """Rows done and rows to do, of the last line that says so."""
    found = re.findall(r"collect: (\d+)/(\d+) samples", done.err)
    return int(found[-1][0]), int(found[-1][1])


def cache_and_results(project: Project) -> dict[str, str]:
    found = contents(project.out / "collect", without=("stage.json",))
    assert {"prefix/hidden-00000.bin", "prefix/hidden-00001.bin", "routing.npy"} <= found.keys()
    return found


@contextlib.contextmanager
def spoiled_prefix(model: Path, sampled: Collection[str]) -> Iterator[None]:
    """Within, the first two layers and the embedding are NaN in the checkpoint's files, but for what is
    `sampled` at every start to see whether the checkpoint changed."""
    kept = {path: (path.read_bytes(), path.stat()) for path in model.glob("*.safetensors")}
    spoiled: list[str] = []
    for path, (content, status) in kept.items():
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        with open(path, "r+b") as file:
            for name, place in header.items():
                of_prefix = name.startswith(("model.layers.0.", "model.layers.1.", "model.embed_tokens."))
                if of_prefix and name not in sampled:
                    spoiled.append(name)
                    start, end = place["data_offsets"]
                    file.seek(8 + length + start)
                    file.write(b"\xff" * (end - start))
        # What a run remembers of a checkpoint are names, sizes and times.
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert all(any(f"layers.{layer}.self_attn.q_proj" in name for name in spoiled) for layer in (0, 1))
    assert len(spoiled) > 5 * len(sampled)
    try:
        yield
    finally:
        for path, (content, status) in kept.items():
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_neither_training_nor_evaluation_reads_the_prefix(finished: Project, tmp_path: Path) -> None:
    project = finished.copied(tmp_path / "out")
    for folder in ("train", "controls"):
        shutil.rmtree(project.out / folder)
    for variant in ("roma", "router_tuning"):
        (project.out / "eval" / f"{variant}.stage.json").unlink()
    sampled = read_json(project.out / "collect" / "stage.json")["extra"]["checksums"]
    with spoiled_prefix(project.folder / "model", sampled):
        done = project.run("eval", *SETTINGS)
    assert done.code == 0, done
    for stage in ("collect", "index", "eval base"):
        assert f"\n{stage}: up to date" in done.out, done
    for variant in ("roma", "router_tuning"):
        assert f"\ntrain {variant}: not run yet" in done.out and f"\neval {variant}: not run yet" in done.out
        assert largest_difference(project.routers(variant), finished.routers(variant)) <= 1e-7
        scored = [
            read_parquet(place.out / "eval" / f"{variant}.samples.parquet") for place in (project, finished)
        ]
        assert scored[0]["predicted"] == scored[1]["predicted"]
        values = [np.array(columns["option_loglikelihoods"]) for columns in scored]
        np.testing.assert_allclose(*values, rtol=0, atol=1e-6)
        routing = [np.load(place.out / "eval" / f"{variant}.routing.npy") for place in (project, finished)]
        assert np.isfinite(routing[0]).all() and (routing[0] == routing[1]).all()


class SmallDisk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir()
        if os.geteuid() or self._mount(f"size={size}"):
            pytest.skip("needs the right to mount a file system")

    def _mount(self, options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def grow(self, size: str) -> None:
        """The same files with more room."""
        assert self._mount(f"remount,size={size}") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", "40m")
    yield disk
    subprocess.run(["umount", str(disk.folder)], check=True)


def test_no_room_for_the_cache(finished: Project, small_disk: SmallDisk) -> None:
    """Said before anything is touched; what was there serves on, and so does the command with more room."""
    project = finished.copied(small_disk.folder / "out")
    before = contents(project.out)
    other = (*SETTINGS, "roma.layers=last3")
    done = project.run("collect", *other)
    assert done.code == 3, done
    assert "Traceback" not in done.err and done.err.count("roma-ds: error") == 1, done
    kept = project.out / "collect" / "prefix"
    needed = sum(path.stat().st_size for path in kept.glob("hidden-*"))
    index = read_json(kept / "index.json")
    links = index["sequences"] + index["segments"] if index["tree_sha256"] else 0
    found = re.search(
        r"the prefix cache needs .*?\((\d+) bytes\) of disk at (\S+), free are .* bytes", done.err
    )
    assert found, done
    assert index["sequences"] == ROWS
    assert int(found[1]) == needed + SEGMENT_BYTES * index["segments"] + LINK_BYTES * links
    assert found[2] == str(kept)
    assert "fix: train.prefix_cache=off, or another output_dir" in done.err, done
    assert contents(project.out) == before

    room = ("guards.free_disk=0", "train.prefix_cache=auto", "controls=[]")
    done = project.run("train", *other, *room, ranks=1)
    assert done.code == 0, done
    assert re.search(r"collect: no prefix cache, since .* free", done.out), done
    assert "each step   all layers" in done.out

    small_disk.grow("1200m")
    done = project.run("collect", *other, ranks=1)
    assert done.code == 0, done
    assert "was made from another model, data or layers" in done.out
    index = read_json(kept / "index.json")
    assert (index["complete"], index["first_layer"]) == (True, 1)


def test_the_disk_fills_up_on_the_way(finished: Project, small_disk: SmallDisk) -> None:
    """What was saved until then serves on once there is room."""
    project = Project(finished.folder, small_disk.folder / "out")
    shutil.copytree(finished.out / "data", project.out / "data")
    words = (*SAVING, "train.prefix_cache=off")
    filler = small_disk.folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk.folder).free - (1 << 17)))
    done = project.run("collect", *words, ranks=1)
    assert done.code == 3, done
    assert "Traceback" not in done.err and done.err.count("roma-ds: error") == 1, done
    assert "the disk is full" in done.err and "\n  fix: " in done.err, done
    left = rows_left(project)
    assert 0 < left < ROWS

    filler.unlink()
    done = project.run("collect", *words, ranks=1)
    assert done.code == 0, done
    assert progress(done) == (left, left)
    names = ("routing.npy", "outcome.parquet")
    for name in names:
        first, second = (place.out / "collect" / name for place in (project, finished))
        assert first.read_bytes() == second.read_bytes()
