"""`roma-ds merge` with a GGUF file: what it says, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from cli.projects import Finished, Project, make_project, roma_ds_here
from safetensors.torch import load_file
from unit.gguf_files import Tiny, add, metadata, tensors

from roma_ds.training.stage import write_router_file

BOTH = ["m.gguf", "router.safetensors"]


def merge(base: Path, router: Path, out: Path, *more: str) -> Finished:
    return roma_ds_here(["merge", str(base), str(router), "--out", str(out), *more])


def refused(done: Finished, code: int, message: str, folder: Path, names: list[str]) -> None:
    assert done.code == code and message in done.err and "fix: " in done.err, done
    assert "Traceback" not in done.err and not done.out
    assert sorted(os.listdir(folder)) == names


def test_what_was_done_is_said(tmp_path: Path) -> None:
    tiny = Tiny()
    done = merge(tiny.write(tmp_path / "m.gguf"), tiny.router(tmp_path), tmp_path / "t.gguf")
    assert done.code == 0, done
    assert done.out.splitlines() == [
        f"merged 2 routers into {tmp_path / 't.gguf'}; 16 tensors verified, all others byte for byte those "
        "of the base",
        "llama.cpp runs olmoe so: it leaves the weights of the chosen experts as they are, in its own code "
        "(`norm_topk_prob` of the config is not read)",
    ]


def test_what_was_rounded_and_not_compared_is_said(tmp_path: Path) -> None:
    tiny = Tiny(kind="BF16", architecture="some-arch")
    done = merge(tiny.write(tmp_path / "m.gguf"), tiny.router(tmp_path, digests=False), tmp_path / "t.gguf")
    assert done.code == 0, done
    assert "the file has its gates in BF16, to which the router file's float32 was rounded" in done.out
    assert "shapes and layers alone were compared with the base, not its gates: the router file" in done.out
    assert "how llama.cpp routes some-arch has not been looked up here" in done.out
    exact = ("--gate-dtype", "float32")
    done = merge(tmp_path / "m.gguf", tmp_path / "router.safetensors", tmp_path / "u.gguf", *exact)
    refused(done, 2, "is stored in BF16, in which float32 is rounded", tmp_path, [*BOTH, "t.gguf"])


def test_another_model_ends_with_two(tmp_path: Path) -> None:
    base = Tiny(seed=1).write(tmp_path / "m.gguf")
    done = merge(base, Tiny().router(tmp_path), tmp_path / "t.gguf")
    refused(done, 2, "has other gates in layers 2-3 than the base", tmp_path, BOTH)


@pytest.mark.parametrize("split", [False, True])
def test_a_full_disk_ends_with_three(split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a split file the second part does not fit."""
    tiny, synced = Tiny(), []
    router = tiny.router(tmp_path)
    tiny.write(tmp_path / "m.gguf", **({"split_max_tensors": 5} if split else {}))
    there = sorted(path.name for path in tmp_path.iterdir())

    def full(number: int) -> None:
        synced.append(number)
        if len(synced) == 1 + split:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("roma_ds.export.gguf_copy.os.fsync", full)
    done = merge(min(tmp_path.glob("m*.gguf")), router, tmp_path / "t.gguf")
    refused(done, 3, "the disk is full", tmp_path, there)


def test_too_small_a_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny()
    base, router = tiny.write(tmp_path / "m.gguf"), tiny.router(tmp_path)
    size = base.stat().st_size
    monkeypatch.setattr("roma_ds.export.merge_gguf.free_bytes", lambda _: size - 1)
    done = merge(base, router, tmp_path / "t.gguf")
    refused(done, 3, f"takes {size:,} bytes, and {size - 1:,} are free", tmp_path, BOTH)


@pytest.mark.parametrize("call", ["rewrite", "shutil.copy2"])
def test_a_full_disk_leaves_no_checkpoint(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file with routers is written, and while what is not changed is copied."""
    project = make_project(tmp_path / "project", rows=8)
    gate = torch.zeros(8, 32)
    write_router_file(tmp_path / "r.safetensors", {2: gate}, {2: "model.layers.2.mlp.gate.weight"}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"roma_ds.export.merge.{call}", full)
    done = merge(project.folder / "model", tmp_path / "r.safetensors", tmp_path / "merged")
    refused(done, 3, "the disk is full", tmp_path, ["project", "r.safetensors"])


def write_gguf(project: Project, path: Path) -> Path:
    """The project's checkpoint as a GGUF file: its gates, and little else."""
    writer = gguf.GGUFWriter(path, "olmoe")
    writer.add_block_count(4)
    for file in sorted((project.folder / "model").glob("*.safetensors")):
        for key, value in load_file(file).items():
            if key.endswith("mlp.gate.weight"):
                name = f"blk.{key.split('.')[2]}.ffn_gate_inp.weight"
                add(writer, name, value.float().numpy(), "F32")
    add(writer, "output_norm.weight", np.ones(7), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trained_routers_fit_the_file_of_their_base_and_no_other(tmp_path: Path, dtype: str) -> None:
    project = make_project(tmp_path / "project", rows=32, epochs=1, dtype=dtype)
    done = project.run("train", ranks=1)
    assert done.code == 0, done
    router = project.out / "train" / "router.safetensors"
    base = write_gguf(project, tmp_path / "base.gguf")
    done = merge(base, router, tmp_path / "tuned.gguf")
    assert done.code == 0 and "not its gates" not in done.out, done
    after = tensors(tmp_path / "tuned.gguf")
    for key, value in load_file(router).items():
        assert after[f"blk.{key.split('.')[2]}.ffn_gate_inp.weight"][2] == value.numpy().tobytes()
    assert metadata(tmp_path / "tuned.gguf")["roma_ds.layers"] == "2,3"
    other = write_gguf(make_project(tmp_path / "other", dtype=dtype, seed=7), tmp_path / "other.gguf")
    done = merge(other, router, tmp_path / "none.gguf")
    assert done.code == 2 and "has other gates in layers 2-3 than the base" in done.err, done
